// Package book keeps book.db: what must outlive the queue of records. Which terminal stands behind each device, how far
// its log was read, what a driver wants to remember, and the ledger of commands, which is why no door opens twice.
// The agent calls it. It never deletes a damaged file.
package book

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"gatepost"
)

// Device is what is known of one configured terminal.
type Device struct {
	ID          gatepost.DeviceID
	Identity    string // serial number, or "device:" and the id where the terminal refuses to tell one
	Driver      string
	Model       string
	Firmware    string
	Doors       int
	FirstSeen   time.Time // of this identity
	LastContact time.Time // kept to the hour: it is not worth a write per contact
}

// EntryState is how far a command got in the ledger.
type EntryState string

const (
	Started EntryState = "started" // it may have been sent to the terminal
	Final   EntryState = "final"   // its result is known
)

// Entry is a command in the ledger.
type Entry struct {
	Command  gatepost.Command
	Received time.Time
	State    EntryState
	Result   gatepost.Result // where Final
	Reported bool            // the result is in the record log
}

// Book is an open book.db. Its methods are safe for several goroutines.
type Book struct{}

// Open opens or makes the file.
func Open(ctx context.Context, path string, log *slog.Logger) (*Book, error) {
	return nil, errors.ErrUnsupported
}

// Close syncs and closes.
func (b *Book) Close() error { return errors.ErrUnsupported }

// Device is what is known of a device; ok is false where nothing is.
func (b *Book) Device(ctx context.Context, id gatepost.DeviceID) (d Device, ok bool, err error) {
	return d, false, errors.ErrUnsupported
}

// SetDevice keeps d. It writes only what changed; LastContact alone is written once an hour.
func (b *Book) SetDevice(ctx context.Context, d Device) error { return errors.ErrUnsupported }

// Cursor is how far the log of the terminal identity at device id was read: the driver's own word, empty at first.
func (b *Book) Cursor(ctx context.Context, id gatepost.DeviceID, identity string) (string, error) {
	return "", errors.ErrUnsupported
}

// SetCursor keeps a cursor. It is not waited for: one that is lost costs reading again.
func (b *Book) SetCursor(ctx context.Context, id gatepost.DeviceID, identity, cursor string) error {
	return errors.ErrUnsupported
}

// KeyValue is the durable memory of a device's driver.
func (b *Book) KeyValue(id gatepost.DeviceID) gatepost.KeyValue { return nil }

// Begin enters c. Where its id is new, the row is on disk when Begin returns nil; only then may the command go out.
// Else it returns what the ledger has and writes nothing. Of several callers with one id exactly one gets nil.
func (b *Book) Begin(ctx context.Context, c gatepost.Command, at time.Time) (known *Entry, err error) {
	return nil, errors.ErrUnsupported
}

// Finish enters the result of a command that was begun. It survives the process at once, and the board's power within
// 200 ms; it is not waited for.
func (b *Book) Finish(ctx context.Context, r gatepost.Result, at time.Time) error {
	return errors.ErrUnsupported
}

// FinishNew enters a command together with its result, for one that nothing was sent for: rejected, expired. Where the
// id is taken it returns what the ledger has and writes nothing.
func (b *Book) FinishNew(ctx context.Context, c gatepost.Command, r gatepost.Result, at time.Time) (known *Entry, err error) {
	return nil, errors.ErrUnsupported
}

// Reported notes that the result of command id is in the record log.
func (b *Book) Reported(ctx context.Context, id string) error { return errors.ErrUnsupported }

// Unfinished lists what a dead predecessor left: commands without a result, and results that are not in the record log.
func (b *Book) Unfinished(ctx context.Context) ([]Entry, error) { return nil, errors.ErrUnsupported }

// LastTime is the highest time kept by SetLastTime: the board's clock has been there.
func (b *Book) LastTime(ctx context.Context) (time.Time, error) {
	return time.Time{}, errors.ErrUnsupported
}

// SetLastTime keeps t if it is higher, an hour at least after the last one kept.
func (b *Book) SetLastTime(ctx context.Context, t time.Time) error { return errors.ErrUnsupported }

// Run syncs what was not waited for and prunes the ledger, until ctx ends.
func (b *Book) Run(ctx context.Context) error { return errors.ErrUnsupported }
