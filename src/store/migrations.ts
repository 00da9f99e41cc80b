/** The database's schema, as the steps that lead to it. A step that has been released is never edited. */
export const migrations: readonly string[] = [
  `
  CREATE TABLE network  (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
  CREATE TABLE sandbox  (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
  CREATE TABLE endpoint (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
  CREATE TABLE port     (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
  -- Numbered without gaps; old ones are deleted, ids are never used again.
  CREATE TABLE event (id INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL) STRICT;
  -- Host-wide settings natbridge changed, in the order of changing.
  CREATE TABLE host_setting (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    before TEXT NOT NULL,
    value TEXT NOT NULL
  ) STRICT;
  CREATE TABLE setting (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
  `,
];
