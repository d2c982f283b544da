"""What is asked of other machines: files at an address, repositories of a hub; patiently, each error one line."""
