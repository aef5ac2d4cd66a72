"""A small but real engine, to run a fleet without a model: `python -m engines.demo`.

The engine uses the standard library only, and imports nothing from outside of its folder. The folder alone thus makes an image,
which runs `python -m demo`.

Environment: ENGINE_KEY_HASH (required), PORT, BIND, SQLITE_DB_PATH, CATALOG_DIR. DEMO_FAULTS=1 permits trouble on demand (see
`faults`). Only with DEMO_FAULTS=1, DEMO_BOOT_DELAY_S is read: the seconds for which the engine is "starting".
"""
