"""The pure formats: bytes in, bytes out. No I/O, clock, framework or database."""
