"""Staff of the admin: who they are, how they log in, what their roles permit, and the record of all of it."""
