"""What people look at: the report of an output, its drift against an older one."""
