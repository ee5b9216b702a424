// Package buffer is records.db: the durable log of records, the refusal of doubles, and each uplink's place in the log.
// Package agent calls it, and nobody else. It never talks to a terminal or an uplink, never reads the configuration, and
// never forgets a punch that a required uplink has not confirmed. DESIGN.md says how and why.
package buffer

import (
	"errors"
	"log/slog"
	"time"

	"gatepost"
)

// Options is how Open is told what it cannot know; the zero value is usable.
type Options struct {
	MaxBytes int64         // what waiting records may take; 0: 512 MiB
	MaxAge   time.Duration // delivered records are kept this long; 0: not at all
	Log      *slog.Logger  // nil: none
	Now      func() time.Time
	// Event takes what should become a record of its own: a damaged file set aside, the gap of an uplink left behind, a
	// run of evictions. It is called by Run and Open, never under a lock, and may call Put.
	Event func(gatepost.Event)
}

// Entry is a record to put.
type Entry struct {
	gatepost.Stored        // Log and Seq are set by Put
	Source          string // whose doubles are refused: a terminal's identity; empty: never a double
	Minute          int64  // [gatepost.Wall.Minute] of the record: refusal rows are clustered by it
}

// Uplink is a reader of the log that has a place in it.
type Uplink struct {
	ID         string
	Required   bool // records wait for it for ever, within the limits
	FromOldest bool // a new one starts at the oldest record; else at the next
}

// ParkedRecord is a record that an uplink will never take.
type ParkedRecord struct {
	gatepost.Stored
	Uplink string
	Reason string
	At     time.Time
}

// Stats is what the store counts; none of it is found by scanning.
type Stats struct {
	Log     string                      `json:"log"`
	Head    int64                       `json:"head"`          // the newest record's number
	Records int64                       `json:"records"`       // in the file
	Bytes   int64                       `json:"bytes"`         // of those records
	Seen    int64                       `json:"seen"`          // refusal rows
	Parked  int64                       `json:"parked"`        // of all uplinks
	Uplinks map[string]gatepost.Backlog `json:"uplinks"`       // by uplink id
	Full    bool                        `json:"full"`          // the last Put was refused for want of room
	File    int64                       `json:"file_bytes"`    // bytes of the file and its write-ahead log on disk
	Written int64                       `json:"written_bytes"` // bytes written to them since Open
	Commits int64                       `json:"commits"`       // since Open
	Syncs   int64                       `json:"syncs"`         // since Open
}

// ErrFull is why Put refuses when only what must not be deleted is left. The terminal keeps its records.
var ErrFull = errors.New("the record buffer is full")
