"""How every command starts: its help, and mistyped keys in one sentence."""
