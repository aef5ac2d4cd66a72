"""A small but real engine, to run a fleet without a model behind it: `python -m engines.demo`.

Standard library only and nothing imported from outside this folder, so that the folder alone makes an image
(`python -m demo`). Environment: ENGINE_KEY_HASH (required), PORT, BIND, SQLITE_DB_PATH, CATALOG_DIR; and for trouble on demand
DEMO_FAULTS=1 (see `faults`), with it DEMO_BOOT_DELAY_S (seconds of "starting").
"""
