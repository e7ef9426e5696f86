"""Commands, a group a file: parse, call, print. No logic lives here."""
