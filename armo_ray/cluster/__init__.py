"""The Ray that work is done on."""
