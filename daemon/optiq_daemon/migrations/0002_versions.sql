-- Versions that a name pointed to and that are kept; the one with the latest publish_time is, or was last, served.
CREATE TABLE adapter_versions (
    tenant        TEXT NOT NULL,
    id            TEXT NOT NULL,
    digest        TEXT NOT NULL,
    number        INTEGER NOT NULL,
    publish_time  REAL NOT NULL,
    document      TEXT NOT NULL,
    PRIMARY KEY (tenant, id, digest),
    UNIQUE (tenant, id, number),
    FOREIGN KEY (tenant, id) REFERENCES adapters (tenant, id) ON DELETE CASCADE
) STRICT;

CREATE INDEX adapter_versions_by_digest ON adapter_versions (digest);

INSERT INTO adapter_versions (tenant, id, digest, number, publish_time, document)
SELECT tenant, id, digest, 1, json_extract(document, '$.update_time'),
       json_object('tenant', tenant, 'adapter', id, 'digest', digest, 'number', 1, 'origin', 'folder',
                   'create_time', json_extract(document, '$.update_time'),
                   'publish_time', json_extract(document, '$.update_time'),
                   'description', json_extract(document, '$.description'))
FROM adapters WHERE digest <> '';

UPDATE adapters SET document = json_set(document, '$.last_number', 1, '$.folder_digest', digest) WHERE digest <> '';
