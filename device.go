package gatepost

import (
	"context"
	"time"
)

// Device is one configured terminal: settings, no connection.
type Device interface {
	// Open connects and learns who answers. A terminal that calls us is waited for. The session's connection state is all
	// its own; after an error it is thrown away.
	Open(ctx context.Context) (Session, error)
}

// Session is one open conversation with a terminal. Its methods are safe for several goroutines. What else it can do is
// found by type assertion on the interfaces below; "this model cannot" is [errors.ErrUnsupported] from the call.
// Never wrap a Session: a wrapper hides those interfaces.
type Session interface {
	Info() Info
	// Close says goodbye where the protocol has a word for it and frees the connection. It may be called twice.
	Close() error
}

// Info is what a terminal told about itself. Empty or zero: it did not say.
type Info struct {
	Serial   string            `json:"serial,omitempty"` // its identity
	Model    string            `json:"model,omitempty"`
	Firmware string            `json:"firmware,omitempty"`
	Platform string            `json:"platform,omitempty"`
	MAC      string            `json:"mac,omitempty"`
	Doors    int               `json:"doors"`
	Counts   map[string]int    `json:"counts,omitempty"` // users, records, capacities ... as of opening
	Options  map[string]string `json:"options,omitempty"`
}

// Emit stores records, all or none, and returns when they are on disk: only then may a session confirm them to the
// terminal. Doubles are not an error. After an error nothing may be confirmed; the terminal keeps the records.
type Emit func(ctx context.Context, rs ...Record) error

// LiveSource is a session that tells punches as they happen.
type LiveSource interface {
	// Listen emits until ctx ends or the link fails. It sends each confirmation to the terminal after emit returned nil.
	Listen(ctx context.Context, emit Emit) error
}

// LogSource is a session whose terminal keeps a log that can be read again.
type LogSource interface {
	// ReadLog emits what the log holds beyond the cursor after, which is the driver's own and opaque, empty at first.
	// Nothing new costs one round trip. full asks for every record, whatever the cursor says. Records are emitted in pages
	// while they arrive. On an error what was emitted stays good, but the cursor does not move.
	ReadLog(ctx context.Context, after string, full bool, emit Emit) (LogRead, error)
}

// LogRead is the outcome of a complete ReadLog.
type LogRead struct {
	Next    string // the cursor to keep
	Full    bool   // every record in the log was emitted: a record not among them is no longer in the terminal
	Emitted int
}

// Unlocker opens doors.
type Unlocker interface {
	// Unlock opens door (from 1) for hold and returns when the terminal confirmed. It goes out ahead of any bulk transfer
	// under way. Once a byte of it may have left, an error without the terminal's own "no" wraps [ErrOutcomeUnknown].
	Unlock(ctx context.Context, door int, hold time.Duration) error
}

// Clock is a terminal whose clock can be read and set.
type Clock interface {
	Time(ctx context.Context) (Wall, error)
	// SetTime sets the terminal's clock to w.
	SetTime(ctx context.Context, w Wall) error
}

// User is a person as a terminal knows them.
type User struct {
	ID        string `json:"user"`
	Name      string `json:"name,omitempty"`
	Card      string `json:"card,omitempty"`
	Privilege string `json:"privilege"` // user, enroller, admin, super_admin, other
	Disabled  bool   `json:"disabled,omitempty"`
	Group     int    `json:"group,omitempty"`
	Password  bool   `json:"password,omitempty"` // has one; the password itself is never told
	Index     int    `json:"index,omitempty"`    // the terminal's internal number
}

// UserStore is a terminal whose users can be listed.
type UserStore interface {
	Users(ctx context.Context) ([]User, error)
}

// Inspector can ask the terminal again for what [Session.Info] told at opening.
type Inspector interface {
	Inspect(ctx context.Context) (Info, error)
}

// State is where a device stands. Every change is published once.
type State string

const (
	StateDisabled      State = "disabled"      // configured off
	StateConnecting    State = "connecting"    // first try since start or reload
	StateOnline        State = "online"        // identity known, log caught up or being read
	StateBackoff       State = "backoff"       // lost or unreachable; trying again
	StateMisconfigured State = "misconfigured" // a person must change something; tried rarely
	StatePending       State = "pending"       // calls us, and is not accepted yet
	StatePaused        State = "paused"        // set aside on request, for other software
)
