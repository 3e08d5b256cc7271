"""What adapters cost that are seldom asked for: `bench coldstart` and `bench oversubscribe`."""
