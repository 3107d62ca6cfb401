"""What several tests share: oracles, fakes, readers, and commands in processes of their own."""
