-- `document` holds role, weight, quotas and paths; '{}' is a tenant with every default.
ALTER TABLE tenants ADD COLUMN document TEXT NOT NULL DEFAULT '{}';

-- `hash` is the SHA-256 of the token's secret; the token itself is kept nowhere.
CREATE TABLE tokens (
    id           TEXT PRIMARY KEY,
    tenant       TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    hash         BLOB NOT NULL,
    create_time  REAL NOT NULL,
    use_time     REAL NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX tokens_by_tenant ON tokens (tenant, create_time);

-- Adapters that every tenant may use. An id is shared by one owner at most, so that a bare id says which one.
CREATE TABLE shares (
    adapter      TEXT PRIMARY KEY,
    tenant       TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE
) STRICT;

-- What was served, by UTC day. `adapter` is empty for the bare base; `owner` is whose adapter it was.
CREATE TABLE usage (
    tenant             TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    owner              TEXT NOT NULL,
    adapter            TEXT NOT NULL,
    day                INTEGER NOT NULL,
    requests           INTEGER NOT NULL DEFAULT 0,
    prompt_tokens      INTEGER NOT NULL DEFAULT 0,
    cached_tokens      INTEGER NOT NULL DEFAULT 0,
    completion_tokens  INTEGER NOT NULL DEFAULT 0,
    training_seconds   REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, owner, adapter, day)
) STRICT;
