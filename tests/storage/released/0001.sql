-- A database as Parallax with schema 0001 left it. Written once by that version, never edited.
BEGIN TRANSACTION;
CREATE TABLE bundles (
	hash TEXT NOT NULL, 
	path TEXT NOT NULL, 
	bundle TEXT NOT NULL, 
	PRIMARY KEY (hash)
);
INSERT INTO "bundles" VALUES('h1','m.prism','{"m.prism": "return 1"}');
CREATE TABLE events (
	execution TEXT NOT NULL, 
	seq INTEGER NOT NULL, 
	type TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	step_key TEXT, 
	agent_id TEXT, 
	data TEXT NOT NULL, 
	PRIMARY KEY (execution, seq)
)
 WITHOUT ROWID

;
INSERT INTO "events" VALUES('01jdexecution0000000000000',1,'execution.queued',1700000000.5,NULL,NULL,'{"pattern":"fix","version":"1","hash":"h1"}');
INSERT INTO "events" VALUES('01jdexecution0000000000000',2,'log.printed',1700000002.5,NULL,NULL,'{"line":"hello"}');
CREATE TABLE executions (
	id TEXT NOT NULL CHECK (id <> ''), 
	pattern TEXT NOT NULL, 
	version TEXT NOT NULL, 
	hash TEXT NOT NULL, 
	input TEXT NOT NULL, 
	repo TEXT, 
	base TEXT, 
	base_branch TEXT, 
	state TEXT NOT NULL, 
	reason TEXT, 
	attempt INTEGER DEFAULT '1' NOT NULL, 
	epoch INTEGER DEFAULT '0' NOT NULL, 
	recoveries INTEGER DEFAULT '0' NOT NULL, 
	parent TEXT, 
	deadline_s FLOAT, 
	options TEXT DEFAULT '{}' NOT NULL, 
	result TEXT, 
	confidence FLOAT, 
	usage TEXT, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	ended_at FLOAT, 
	PRIMARY KEY (id), 
	FOREIGN KEY(hash) REFERENCES bundles (hash)
);
INSERT INTO "executions" VALUES('01jdexecution0000000000000','fix','1','h1','{"goal":"ü"}',NULL,NULL,NULL,'running',NULL,1,1,0,NULL,NULL,'{"agents":{"engineer":"claude"}}',NULL,NULL,'{"input_tokens":0,"output_tokens":0,"cached_tokens":0,"cost":12,"turns":0,"wall_s":0.0,"priced":"estimated"}',1700000000.5,NULL,NULL);
CREATE TABLE idempotency (
	"key" TEXT NOT NULL, 
	body_hash TEXT NOT NULL, 
	execution TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "idempotency" VALUES('k','b','01jdexecution0000000000000',1700000000.0);
CREATE TABLE journal (
	execution TEXT NOT NULL CHECK (execution <> ''), 
	seq INTEGER NOT NULL, 
	step_key TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	epoch INTEGER NOT NULL, 
	input_hash TEXT, 
	body TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	PRIMARY KEY (execution, seq)
)
 WITHOUT ROWID

;
INSERT INTO "journal" VALUES('01jdexecution0000000000000',1,'a','intent',1,1,'aa','{"effect":"assign","request":{"task":"t"},"agent":"x"}',1700000001.0);
INSERT INTO "journal" VALUES('01jdexecution0000000000000',2,'a','result',1,1,'aa','{"outcome":{"value":41,"confidence":0.9,"error":null,"catchable":true}}',1700000002.0);
CREATE TABLE meta (
	"key" TEXT NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('schema','0001');
INSERT INTO "meta" VALUES('epoch','1');
CREATE TABLE questions (
	id TEXT NOT NULL, 
	execution TEXT NOT NULL, 
	step_key TEXT NOT NULL, 
	asker TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	text TEXT NOT NULL, 
	topic TEXT, 
	options TEXT NOT NULL, 
	"default" TEXT, 
	deadline_at FLOAT, 
	depth INTEGER NOT NULL, 
	state TEXT NOT NULL, 
	answer TEXT, 
	answered_by TEXT, 
	asked_at FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "questions" VALUES('q1','01jdexecution0000000000000','a','program','question','Go on?',NULL,'[]',NULL,NULL,0,'with_person',NULL,NULL,1700000003.0);
CREATE UNIQUE INDEX journal_one_result ON journal (execution, step_key) WHERE kind IN ('result', 'join');
CREATE INDEX questions_state ON questions (state);
CREATE INDEX executions_state ON executions (state);
COMMIT;
