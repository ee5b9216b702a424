-- Times are Unix milliseconds, UTC.

CREATE TABLE device (
	id           TEXT PRIMARY KEY,
	identity     TEXT NOT NULL,
	driver       TEXT NOT NULL,
	model        TEXT NOT NULL,
	firmware     TEXT NOT NULL,
	doors        INTEGER NOT NULL,
	first_seen   INTEGER NOT NULL,
	last_contact INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How far a terminal's log was read, in its driver's own words. Another terminal at the same device has another cursor.
CREATE TABLE cursor (
	device   TEXT NOT NULL,
	identity TEXT NOT NULL,
	cursor   TEXT NOT NULL,
	PRIMARY KEY (device, identity)
) STRICT, WITHOUT ROWID;

-- What drivers remember.
CREATE TABLE kv (
	device TEXT NOT NULL,
	key    TEXT NOT NULL,
	value  TEXT NOT NULL,
	PRIMARY KEY (device, key)
) STRICT, WITHOUT ROWID;

-- The ledger. A row without a result may have been sent to a terminal. n is the order of arrival.
CREATE TABLE command (
	n        INTEGER PRIMARY KEY,
	id       TEXT NOT NULL UNIQUE,
	request  TEXT NOT NULL, -- JSON, without the arguments
	received INTEGER NOT NULL,
	result   TEXT,          -- JSON
	finished INTEGER,
	reported INTEGER NOT NULL DEFAULT 0
) STRICT;

-- The few rows that the next start has to look at.
CREATE INDEX command_open ON command (n) WHERE reported = 0;

CREATE TABLE fact (
	name  TEXT PRIMARY KEY,
	value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
