"""Files that go with an exported model, to be used without this package."""
