package book

import (
	"context"
	"time"

	"gatepost"
)

// contactStep is how coarsely the last contact is kept: it is not worth a write per contact.
const contactStep = time.Hour

// Device is what is known of one configured terminal.
type Device struct {
	ID          gatepost.DeviceID
	Identity    string // serial number, or "device:" and the id where the terminal refuses to tell one
	Driver      string
	Model       string
	Firmware    string
	Doors       int
	FirstSeen   time.Time // of this identity
	LastContact time.Time // to the hour
}

// Device is what is known of a device; ok is false where nothing is.
func (b *Book) Device(ctx context.Context, id gatepost.DeviceID) (d Device, ok bool, err error) {
	err = b.do(ctx, func(ctx context.Context, s *store) error {
		d = Device{ID: id}
		var first, last int64
		ok, err = s.get(ctx, []any{&d.Identity, &d.Driver, &d.Model, &d.Firmware, &d.Doors, &first, &last},
			"SELECT identity, driver, model, firmware, doors, first_seen, last_contact FROM device WHERE id = ?", string(id))
		d.FirstSeen, d.LastContact = fromMillis(first), fromMillis(last)
		return err
	})
	if err != nil || !ok {
		return Device{}, false, err
	}
	return d, true, nil
}

// SetDevice keeps d, writing only where something changed or the last contact moved on by an hour. The first sight of an
// identity stays what it was; a zero FirstSeen is taken to be LastContact.
func (b *Book) SetDevice(ctx context.Context, d Device) error {
	old, ok, err := b.Device(ctx, d.ID)
	if err != nil {
		return err
	}
	d.LastContact = d.LastContact.Truncate(contactStep).UTC()
	switch {
	case ok && old.Identity == d.Identity:
		d.FirstSeen = old.FirstSeen
		if d.LastContact.Before(old.LastContact) {
			d.LastContact = old.LastContact
		}
	case d.FirstSeen.IsZero():
		d.FirstSeen = d.LastContact
	}
	if ok && d == old {
		return nil
	}
	_, err = b.writeLazily(ctx, "INSERT OR REPLACE INTO device VALUES (?, ?, ?, ?, ?, ?, ?, ?)", string(d.ID), d.Identity,
		d.Driver, d.Model, d.Firmware, d.Doors, millis(d.FirstSeen), millis(d.LastContact))
	return err
}

// Cursor is how far the log of the terminal identity at device id was read: its driver's own word, empty at first.
func (b *Book) Cursor(ctx context.Context, id gatepost.DeviceID, identity string) (cursor string, err error) {
	err = b.do(ctx, func(ctx context.Context, s *store) error {
		_, err := s.get(ctx, []any{&cursor}, "SELECT cursor FROM cursor WHERE device = ? AND identity = ?", string(id), identity)
		return err
	})
	return cursor, err
}

// SetCursor keeps a cursor. It is not waited for: one that is lost costs reading again. So the records behind it must be
// on disk before.
func (b *Book) SetCursor(ctx context.Context, id gatepost.DeviceID, identity, cursor string) error {
	_, err := b.writeLazily(ctx, `INSERT INTO cursor VALUES (?, ?, ?)
		ON CONFLICT DO UPDATE SET cursor = excluded.cursor WHERE cursor <> excluded.cursor`, string(id), identity, cursor)
	return err
}

// KeyValue is the durable memory of a device's driver. A Put survives the process at once and the board's power within
// 200 ms.
func (b *Book) KeyValue(id gatepost.DeviceID) gatepost.KeyValue { return keyValue{b, string(id)} }

type keyValue struct {
	b      *Book
	device string
}

func (kv keyValue) Get(ctx context.Context, key string) (value string, err error) {
	err = kv.b.do(ctx, func(ctx context.Context, s *store) error {
		_, err := s.get(ctx, []any{&value}, "SELECT value FROM kv WHERE device = ? AND key = ?", kv.device, key)
		return err
	})
	return value, err
}

func (kv keyValue) Put(ctx context.Context, key, value string) error {
	_, err := kv.b.writeLazily(ctx, `INSERT INTO kv VALUES (?, ?, ?)
		ON CONFLICT DO UPDATE SET value = excluded.value WHERE value <> excluded.value`, kv.device, key, value)
	return err
}

// LastTime is the highest time that SetLastTime kept: the board's clock has been there. Zero at first.
func (b *Book) LastTime(ctx context.Context) (t time.Time, err error) {
	err = b.do(ctx, func(ctx context.Context, s *store) error {
		var ms int64
		_, err := s.get(ctx, []any{&ms}, "SELECT value FROM fact WHERE name = 'last_time'")
		t = fromMillis(ms)
		return err
	})
	return t, err
}

// SetLastTime keeps t if it lies an hour or more above the time kept before.
func (b *Book) SetLastTime(ctx context.Context, t time.Time) error {
	_, err := b.writeLazily(ctx, `INSERT INTO fact VALUES ('last_time', ?)
		ON CONFLICT DO UPDATE SET value = excluded.value WHERE excluded.value >= value + ?`,
		millis(t), time.Hour.Milliseconds())
	return err
}

// millis is t as the file has it; 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
