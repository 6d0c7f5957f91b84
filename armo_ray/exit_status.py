"""The exit statuses of every command."""

COMPLETE, FAILED, MISUSED, TOO_MANY_REJECTS, DRIFTED, OUT_OF_TIME = range(6)
