"""The child side of every step: plain functions `(params, folder) -> JSON-able value` that write their files into `folder`."""
