CREATE TABLE tenants (
    id           TEXT PRIMARY KEY,
    create_time  REAL NOT NULL
) STRICT;

INSERT INTO tenants (id, create_time) VALUES ('default', CAST(strftime('%s', 'now') AS REAL));

-- One row per name in the drop folder. `document` is the record without what the columns hold.
CREATE TABLE adapters (
    tenant       TEXT NOT NULL REFERENCES tenants (id),
    id           TEXT NOT NULL,
    digest       TEXT NOT NULL,
    document     TEXT NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT;

CREATE INDEX adapters_by_digest ON adapters (digest);

CREATE TABLE jobs (
    id           TEXT PRIMARY KEY,
    tenant       TEXT NOT NULL REFERENCES tenants (id),
    request_id   TEXT NOT NULL,
    state        INTEGER NOT NULL,
    create_time  REAL NOT NULL,
    document     TEXT NOT NULL,
    UNIQUE (tenant, request_id)
) STRICT;

CREATE INDEX jobs_by_state ON jobs (state, create_time);
CREATE INDEX jobs_by_tenant ON jobs (tenant, create_time DESC, id DESC);

CREATE TABLE job_progress (
    sequence     INTEGER PRIMARY KEY AUTOINCREMENT,
    job          TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    step         INTEGER NOT NULL,
    document     TEXT NOT NULL
) STRICT;

CREATE INDEX job_progress_by_job ON job_progress (job, step);

-- AUTOINCREMENT: a revision is never used twice, also after compaction.
CREATE TABLE events (
    revision     INTEGER PRIMARY KEY AUTOINCREMENT,
    time         REAL NOT NULL,
    type         TEXT NOT NULL,
    resource     TEXT NOT NULL,
    message      TEXT NOT NULL,
    fields       TEXT NOT NULL
) STRICT;
