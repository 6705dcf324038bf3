"""The tables of the fleet's database, as the steps that led to them.

Model: a database says in `user_version` how many steps it has taken; opening it takes the others (`edgefl.store.database`).

Rules: a step that has been in a fleet is never changed, only followed by another. A column is only ever added, with a default, so
that rows of before stay right. A step is split at the semicolons that end a line.
"""

MIGRATIONS = (
    """
    CREATE TABLE devices (
        id          TEXT PRIMARY KEY,
        profile     TEXT NOT NULL,
        certificate TEXT NOT NULL,            -- serial number, hexadecimal
        created     REAL NOT NULL,
        revoked     REAL                      -- NULL while valid
    ) STRICT;
    CREATE TABLE presence (                   -- what the server heard last of each device
        device      TEXT PRIMARY KEY,
        online      INTEGER NOT NULL,
        session     INTEGER NOT NULL,
        seen        REAL NOT NULL,
        state       BLOB NOT NULL,            -- encoded wire State
        report      BLOB                      -- encoded wire Report
    ) STRICT;
    CREATE TABLE versions (
        model       TEXT NOT NULL,
        version     INTEGER NOT NULL,
        created     REAL NOT NULL,
        layout      BLOB NOT NULL,            -- msgpack of the parent Layout
        weights     BLOB NOT NULL,            -- SHA-256 of the parent's float32 vector in the blob store
        PRIMARY KEY (model, version)
    ) STRICT;
    CREATE TABLE variants (
        model       TEXT NOT NULL,
        version     INTEGER NOT NULL,
        profile     TEXT NOT NULL,
        variant     TEXT NOT NULL,
        precision   TEXT NOT NULL,
        parameters  INTEGER NOT NULL,
        bytes       INTEGER NOT NULL,         -- of all files together
        budget      INTEGER NOT NULL,
        accuracy    REAL,                     -- on the hold-out set at push, NULL without one
        manifest    BLOB NOT NULL,            -- encoded wire Manifest
        PRIMARY KEY (model, version, profile)
    ) STRICT;
    CREATE TABLE trainings (
        id          INTEGER PRIMARY KEY,
        model       TEXT NOT NULL,
        version     INTEGER NOT NULL,
        plan        BLOB NOT NULL,            -- msgpack of Plan
        holdout     TEXT NOT NULL DEFAULT '', -- source name the server evaluates on
        state       TEXT NOT NULL,            -- running, stopped, finished, superseded
        first       INTEGER NOT NULL,         -- its first round; rounds count on over the trainings of a version
        started     REAL NOT NULL
    ) STRICT;
    CREATE TABLE rounds (
        training    INTEGER NOT NULL,
        round       INTEGER NOT NULL,         -- from 1 for each version
        opened      REAL NOT NULL,
        closed      REAL,                     -- NULL while open
        weights     BLOB NOT NULL,            -- SHA-256 of the parent vector that the round's devices start from
        result      BLOB,                     -- SHA-256 of the parent vector after aggregation
        accuracy    REAL,                     -- of the result, on the hold-out set
        loss        REAL,
        uplink      INTEGER NOT NULL DEFAULT 0,
        downlink    INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (training, round)
    ) STRICT;
    CREATE TABLE updates (
        training    INTEGER NOT NULL,
        device      TEXT NOT NULL,
        round       INTEGER NOT NULL,         -- the round the device trained for
        counted     INTEGER,                  -- the round it was aggregated in, NULL until then
        variant     TEXT NOT NULL,
        samples     INTEGER NOT NULL,
        loss        REAL NOT NULL,
        received    REAL NOT NULL,
        sha256      BLOB NOT NULL,
        data        BLOB NOT NULL,            -- empty once it has been aggregated
        PRIMARY KEY (training, device, round)
    ) STRICT;
    CREATE TABLE counters (
        name        TEXT PRIMARY KEY,
        value       INTEGER NOT NULL
    ) STRICT;
    """,
    """
    CREATE INDEX updates_counted ON updates (training, counted);
    """,
    """
    -- Round whose weights the update was coded with (see the wire's UpdatePart), and its bytes, which outlive its content.
    ALTER TABLE updates ADD COLUMN before INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE updates ADD COLUMN length INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE offers (                     -- what the devices of recent rounds train from
        model       TEXT NOT NULL,
        version     INTEGER NOT NULL,
        round       INTEGER NOT NULL,
        variant     TEXT NOT NULL,
        weights     BLOB NOT NULL,            -- SHA-256 of the weights file in the blob store
        PRIMARY KEY (model, version, round, variant)
    ) STRICT;
    """,
    """
    -- SHA-256 of the vectors that devices hold when the round opens and after it; NULL: the parents weights and result themselves
    ALTER TABLE rounds ADD COLUMN held BLOB;
    ALTER TABLE rounds ADD COLUMN held_after BLOB;
    """,
    """
    -- SHA-256 of the state of the servers optimiser that the round begins with; NULL for a new one
    ALTER TABLE rounds ADD COLUMN optimizer BLOB;
    CREATE TABLE standings (                  -- what the rounds' scores and the operators say of each device
        device      TEXT PRIMARY KEY,
        standing    REAL NOT NULL,            -- from 1 (trusted) to 0
        excluded    REAL,                     -- NULL while it takes part
        by          TEXT NOT NULL DEFAULT ''  -- scores or operator
    ) STRICT;
    """,
    """
    CREATE TABLE releases (                   -- the version of a model that devices are to hold which no rollout says more of
        model       TEXT PRIMARY KEY,
        version     INTEGER NOT NULL,
        since       REAL NOT NULL
    ) STRICT;
    CREATE TABLE assignments (                -- what each device was last told to hold
        device      TEXT PRIMARY KEY,
        counter     INTEGER NOT NULL,
        models      BLOB NOT NULL             -- encoded wire Assigned, all of them
    ) STRICT;
    CREATE TABLE documents (                  -- TUF metadata; every root, and the newest of the other roles
        name        TEXT PRIMARY KEY,         -- timestamp, snapshot, targets, N.root
        data        BLOB NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE rollouts (
        id          INTEGER PRIMARY KEY,
        model       TEXT NOT NULL,
        version     INTEGER NOT NULL,
        previous    INTEGER,                  -- what a device that fails goes back to; NULL for a first version
        rules       BLOB NOT NULL,            -- msgpack of Rules
        target      BLOB NOT NULL,            -- msgpack of Target
        state       TEXT NOT NULL,            -- running, paused, waiting, finished, aborted, superseded, rolled back
        stage       INTEGER NOT NULL,         -- index of the stage that is open
        reason      TEXT NOT NULL DEFAULT '', -- why it is in this state
        started     REAL NOT NULL,
        changed     REAL NOT NULL,            -- when state or stage last changed
        kept        INTEGER NOT NULL DEFAULT 0  -- it has ended, and devices are still to hold what it says
    ) STRICT;
    CREATE TABLE rollout_devices (
        rollout     INTEGER NOT NULL,
        device      TEXT NOT NULL,
        stage       INTEGER,                  -- in which it was told; NULL until then
        step        TEXT NOT NULL,            -- waiting, told, timed-out, or as in a wire Report
        percent     INTEGER NOT NULL DEFAULT 0,
        fetched     INTEGER NOT NULL DEFAULT 0,
        code        TEXT NOT NULL DEFAULT '', -- of the last error
        error       TEXT NOT NULL DEFAULT '',
        since       REAL,                     -- when it had been told and was there; NULL until then
        aside       INTEGER NOT NULL DEFAULT 0, -- it has failed, and an operator has gone on without it
        changed     REAL NOT NULL,
        PRIMARY KEY (rollout, device)
    ) STRICT;
    CREATE INDEX rollout_devices_step ON rollout_devices (step);
    CREATE TABLE tags (
        device      TEXT NOT NULL,
        tag         TEXT NOT NULL,
        PRIMARY KEY (device, tag)
    ) STRICT;
    CREATE TABLE released (                   -- the releases of each model, one upon the other; a rollback takes off the top
        id          INTEGER PRIMARY KEY,
        model       TEXT NOT NULL,
        version     INTEGER NOT NULL,
        since       REAL NOT NULL
    ) STRICT;
    -- Until now every version was the release when it was pushed.
    INSERT INTO released (model, version, since) SELECT model, version, created FROM versions ORDER BY model, version;
    """,
    """
    CREATE TABLE claims (                     -- a board that may still ask for its first certificate
        device      TEXT PRIMARY KEY,
        profile     TEXT NOT NULL,
        token       BLOB NOT NULL,            -- SHA-256 of the secret
        created     REAL NOT NULL,
        expires     REAL NOT NULL,
        used        REAL                      -- NULL while it is open
    ) STRICT;
    CREATE TABLE certificates (
        serial      TEXT PRIMARY KEY,         -- hexadecimal
        device      TEXT NOT NULL,
        issued      REAL NOT NULL,
        expires     REAL NOT NULL,
        state       TEXT NOT NULL,            -- pending, active, replaced, revoked
        changed     REAL NOT NULL,
        request     BLOB NOT NULL DEFAULT x'',  -- SHA-256 of the signing request; empty for a key that was made here
        pem         BLOB NOT NULL DEFAULT x''   -- certificate and intermediate, to be sent again if the reply was lost
    ) STRICT;
    INSERT OR IGNORE INTO certificates (serial, device, issued, expires, state, changed)
        SELECT certificate, id, created, created + 315360000, 'active', created FROM devices WHERE certificate <> '';
    CREATE INDEX certificates_device ON certificates (device);
    CREATE TABLE rotations (                  -- devices that are to change their certificate now
        device      TEXT PRIMARY KEY,
        asked       REAL NOT NULL
    ) STRICT;
    CREATE TABLE audit (                      -- every event of a credential; rows are only ever added
        id          INTEGER PRIMARY KEY,
        at          REAL NOT NULL,
        event       TEXT NOT NULL,
        device      TEXT NOT NULL,
        detail      TEXT NOT NULL
    ) STRICT;
    """,
    """
    -- Rows of the parent that the variant keeps (edgefl.compress.axes); NULL: the leading corner of every tensor
    ALTER TABLE variants ADD COLUMN axes BLOB;
    """,
    """
    -- Part of the prunable weights that is gone from the result, in [0, 1]; NULL while open, and of rounds from before this step
    ALTER TABLE rounds ADD COLUMN pruned REAL;
    """,
)
