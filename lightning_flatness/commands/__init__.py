"""The commands beside those of Lightning; each module has ``main(arguments)``."""
