package buffer

import (
	"context"

	"gatepost"
)

// Store is an open records.db. Its methods are safe for several goroutines.
type Store struct{}

// Open opens or makes the file at path. It checks nothing that grows with the file. A damaged file is set aside whole as
// path.damaged-TIME, what can be read of the undelivered records is carried over to a new one, and Event and the log say so.
func Open(ctx context.Context, path string, o Options) (*Store, error) { panic("soon") }

// Run keeps the store in order until ctx ends: places to disk, retention, the paced check of the file.
func (s *Store) Run(ctx context.Context) error { panic("soon") }

// Close ends the store; Run must have returned.
func (s *Store) Close() error { panic("soon") }

// Put stores es, all or none, and returns when they are on disk. Doubles, also within es, are left out and not counted in
// added. Where ctx ends first es may or may not be stored: put them again. The error wraps [ErrFull] when there is no room.
func (s *Store) Put(ctx context.Context, es ...Entry) (added int, err error) { panic("soon") }

// Has says whether the record id of source at minute was ever put and not yet pruned.
func (s *Store) Has(ctx context.Context, source string, minute int64, id gatepost.ID) (bool, error) {
	panic("soon")
}

// Prune forgets, day by day (Minute / [gatepost.MinutesPerDay]), the refusal rows of source for which keep is false.
func (s *Store) Prune(ctx context.Context, source string, keep func(day int64) bool) (removed int64, err error) {
	panic("soon")
}

// Log names this incarnation of the file.
func (s *Store) Log() string { panic("soon") }

// Head is the number of the newest record on disk, 0 before the first.
func (s *Store) Head() int64 { panic("soon") }

// Wait returns when Head is beyond after.
func (s *Store) Wait(ctx context.Context, after int64) error { panic("soon") }

// Read returns records in (after, upto] in order, at most maxRecords and about maxBytes of data, but at least one if there is any.
func (s *Store) Read(ctx context.Context, after, upto int64, maxRecords, maxBytes int) ([]gatepost.Stored, error) {
	panic("soon")
}

// SetUplinks says which uplinks there are, at start and at each reload. The place of one that is gone is dropped.
func (s *Store) SetUplinks(ctx context.Context, us []Uplink) error { panic("soon") }

// Place is where uplink stands; the zero Place where there is no such uplink.
func (s *Store) Place(uplink string) Place { panic("soon") }

// SetPlace moves uplink, in memory at once and on disk with the next commit or within 200 ms. p must not be ahead of what was confirmed.
func (s *Store) SetPlace(uplink string, p Place) { panic("soon") }

// Park keeps r aside, for people to look at, because uplink will never take it.
func (s *Store) Park(ctx context.Context, uplink string, r gatepost.Stored, reason string) error {
	panic("soon")
}

// Parked lists parked records, newest first.
func (s *Store) Parked(ctx context.Context, limit int) ([]ParkedRecord, error) { panic("soon") }

// Stats counts.
func (s *Store) Stats() Stats { panic("soon") }
