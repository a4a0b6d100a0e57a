CREATE TABLE routes (
    tenant      TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    id          TEXT NOT NULL,
    document    TEXT NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT;

-- Every generation, the newest too.
CREATE TABLE route_history (
    tenant      TEXT NOT NULL,
    route       TEXT NOT NULL,
    generation  INTEGER NOT NULL,
    document    TEXT NOT NULL,
    PRIMARY KEY (tenant, route, generation),
    FOREIGN KEY (tenant, route) REFERENCES routes (tenant, id) ON DELETE CASCADE
) STRICT;

CREATE TABLE shadow_answers (
    sequence    INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant      TEXT NOT NULL,
    route       TEXT NOT NULL,
    document    TEXT NOT NULL,
    FOREIGN KEY (tenant, route) REFERENCES routes (tenant, id) ON DELETE CASCADE
) STRICT;

CREATE INDEX shadow_answers_by_route ON shadow_answers (tenant, route, sequence);
