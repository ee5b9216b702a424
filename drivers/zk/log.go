package zk

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"gatepost"
)

// cursor is what is remembered of a log between two reads.
type cursor struct {
	Seen    int    `json:"n"`                 // records it held
	Count   int    `json:"c"`                 // the terminal's own count that stands for that; -1: it tells none
	Size    int    `json:"size,omitempty"`    // of a record; 0 while none was seen
	Prefix  bool   `json:"prefix,omitempty"`  // see layout
	Wrapped bool   `json:"wrapped,omitempty"` // at capacity, dropping its oldest; it was said
	Run     int    `json:"run,omitempty"`     // records at the end with the time of the last one
	Tail    []byte `json:"tail,omitempty"`    // fingerprints of the last records, u32 each
}

// parseCursor reads what text made; ok is false for anything else, which is then read like no cursor at all.
func parseCursor(text string) (c cursor, ok bool) {
	if json.Unmarshal([]byte(text), &c) != nil {
		return cursor{}, false
	}
	switch c.Size {
	case recordSmall, recordText, recordLong:
		ok = c.Seen > 0 && len(c.Tail) == 4*min(c.Seen, known)
	case 0:
		ok = c.Seen == 0 && len(c.Tail) == 0
	}
	if !ok || c.Seen > maxSet || c.Count < -1 || c.Count > maxSet || c.Run < 0 || c.Run > c.Seen || c.Prefix && c.Size != recordLong {
		return cursor{}, false
	}
	return c, true
}

func (c cursor) text() string {
	b, _ := json.Marshal(c) // numbers and bytes always encode
	return string(b)
}

func (c cursor) prints() []uint32 {
	ps := make([]uint32, len(c.Tail)/4)
	for i := range ps {
		ps[i] = le.Uint32(c.Tail[4*i:])
	}
	return ps
}

// tailWindow is how many records at the end are looked at where the count cannot tell what is new: new ones, and enough
// old ones to know it by.
const tailWindow = 256

// keyTail in a device's State says "no" once the terminal was found unable to read its log from the middle.
const keyTail = "zk.tail"

// ReadLog emits what is new in the log. The protocol can only say how many records there are and give all of them, or,
// on firmware that buffers, a part by byte offset. So: the count unchanged, nothing is read; grown, the end is read, from
// the last records known on, which must be as they were; anything else, everything is read.
func (s *session) ReadLog(ctx context.Context, after string, full bool, emit gatepost.Emit) (gatepost.LogRead, error) {
	if err := s.bulk.take(ctx, normal); err != nil {
		return gatepost.LogRead{}, fmt.Errorf("%s: %w", attLog.what, err)
	}
	defer s.bulk.give()
	old, ok := parseCursor(after)
	if after != "" && !ok {
		s.env.Log.Warn("the log is read from its beginning: its read position cannot be understood")
	}
	if old.Size != 0 {
		s.logSize.Store(int32(old.Size))
	}
	count, capacity, err := s.level(ctx)
	if err != nil {
		return gatepost.LogRead{}, err
	}
	r := logReader{session: s, old: old, known: ok, count: count, capacity: capacity, emit: emit}
	if ok && !full {
		if count >= 0 && count == old.Count && !r.atCapacity() {
			return gatepost.LogRead{Next: after}, nil
		}
		if count == 0 {
			return r.emptied(ctx)
		}
	}
	d, err := s.l.prepare(ctx, attLog)
	if err != nil {
		// Some firmware refuses to read a log that is empty.
		if _, refused := errors.AsType[replyError](err); refused && count == 0 && gatepost.ClassOf(err) != gatepost.Misconfigured {
			return r.emptied(ctx)
		}
		return gatepost.LogRead{}, err
	}
	read, err := r.read(ctx, d, full)
	d.close(ctx, err == nil)
	return read, err
}

// logReader is one ReadLog.
type logReader struct {
	*session
	old             cursor
	known           bool // old is a cursor
	count, capacity int
	emit            gatepost.Emit
	emitted         int
}

func (r *logReader) atCapacity() bool { return r.capacity > 0 && r.count >= r.capacity }

// emptied is the outcome where the terminal counts no records. Nothing was read, so it proves nothing about any record:
// a face terminal in access-control mode counts none though it has some.
func (r *logReader) emptied(ctx context.Context) (gatepost.LogRead, error) {
	if r.old.Seen > 0 {
		if err := r.tell(ctx, "log_cleared", "the terminal's log was cleared", 0); err != nil {
			return gatepost.LogRead{}, err
		}
	}
	return gatepost.LogRead{Next: cursor{}.text(), Emitted: r.emitted}, nil
}

// logChange is the detail of an event about the log.
type logChange struct {
	Known   int `json:"known"`   // records when last read
	Records int `json:"records"` // now
	Dropped int `json:"dropped,omitempty"`
}

// tell emits an event about the log. Its key comes from the old cursor, so that a read that fails and is done again tells
// it once.
func (r *logReader) tell(ctx context.Context, name, message string, dropped int) error {
	key := hex.AppendEncode([]byte(name+"|"+strconv.Itoa(r.old.Seen)+"|"), r.old.Tail)
	r.env.Log.Warn(message, "count", r.old.Seen)
	err := r.emit(ctx, gatepost.Record{Key: string(key), Data: gatepost.Event{
		Name:    name,
		Message: message,
		Detail:  logChange{Known: r.old.Seen, Records: max(r.count, 0), Dropped: dropped},
	}})
	if err == nil {
		r.emitted++
	}
	return err
}

// read takes what is new from d, or everything.
func (r *logReader) read(ctx context.Context, d *dataset, full bool) (gatepost.LogRead, error) {
	tried := false
	if r.known && !full && r.old.Seen > 0 && d.stream == nil && r.canTail(ctx) {
		read, err := r.tail(ctx, d)
		_, bad := errors.AsType[*dataError](err)
		_, refused := errors.AsType[replyError](err)
		if err == nil || !bad && !refused && !errors.Is(err, errOdd) {
			return read, err
		}
		r.env.Log.Debug("the end of the log does not continue what is known; reading all of it", "err", err)
		tried = true
	}
	return r.all(ctx, d, tried)
}

// canTail says whether reading from the middle is worth trying.
func (r *logReader) canTail(ctx context.Context) bool {
	if r.env.State == nil {
		return true
	}
	v, err := r.env.State.Get(ctx, keyTail)
	if err != nil {
		r.env.Log.Debug("what is known of the terminal could not be read", "err", err)
	}
	return v != "no"
}

func (r *logReader) decoder(ctx context.Context, l layout) *decoder {
	return &decoder{layout: l, enc: r.Encoding, same: newOccurrences(), emit: func(rs []gatepost.Record) error {
		return r.emit(ctx, rs...)
	}}
}

// tail reads from the last known records on.
func (r *logReader) tail(ctx context.Context, d *dataset) (gatepost.LogRead, error) {
	l := layout{Size: r.old.Size, Prefix: r.old.Prefix}
	n := d.body() / l.Size
	if d.body()%l.Size != 0 || n < r.old.Seen {
		return gatepost.LogRead{}, errOdd
	}
	dec := r.decoder(ctx, l)
	dec.tail, dec.quiet = r.old.prints(), true
	back := max(len(dec.tail), min(r.old.Run, occurrenceWindow))
	from := r.old.Seen - back
	dec.since, dec.until = back, back
	if n == r.old.Seen { // a log at capacity, or one whose count says nothing: the known end may have moved up
		from = max(0, n-tailWindow-back)
		dec.since, dec.until = 0, n-from
	}
	if err := d.read(ctx, from*l.Size, dec.push); err != nil {
		return gatepost.LogRead{}, err
	}
	if from+dec.seen != n {
		return gatepost.LogRead{}, errOdd
	}
	wrapped := n == r.old.Seen && dec.found < dec.seen
	if wrapped && !r.old.Wrapped {
		if err := r.tell(ctx, "log_wrapped", "the terminal's log is full and drops its oldest records", dec.seen-dec.found); err != nil {
			return gatepost.LogRead{}, err
		}
	}
	if err := dec.flush(); err != nil {
		return gatepost.LogRead{}, err
	}
	next := r.next(dec, n)
	next.Wrapped = r.atCapacity() && (wrapped || r.old.Wrapped)
	return gatepost.LogRead{Next: next.text(), Emitted: r.emitted + dec.emitted}, nil
}

// next is the cursor after a log of n records was read to its end.
func (r *logReader) next(dec *decoder, n int) cursor {
	c := cursor{Seen: n, Count: n, Size: dec.Size, Prefix: dec.Prefix, Run: min(dec.run, n)}
	if r.count <= 0 {
		c.Count = r.count // a terminal that counts none, or does not say
	}
	for _, p := range dec.prints() {
		c.Tail = le.AppendUint32(c.Tail, p)
	}
	if n == 0 {
		c.Size, c.Prefix, c.Run = 0, false, 0
	}
	r.logSize.Store(int32(c.Size))
	return c
}

// layoutBytes is enough of a log's beginning to find its layout.
const layoutBytes = 50 * recordLong

// all reads everything.
func (r *logReader) all(ctx context.Context, d *dataset, triedTail bool) (gatepost.LogRead, error) {
	dec := r.decoder(ctx, layout{})
	dec.tail, dec.until = r.old.prints(), r.old.Seen
	var begin []byte
	err := d.read(ctx, 0, func(p []byte) error {
		if dec.Size == 0 {
			begin = append(begin, p...)
			if len(begin) < min(layoutBytes, d.body()) {
				return nil
			}
			// The board's clock may not be set yet; terminals do not run ahead of this.
			l, err := findLayout(begin, d.body(), r.count, r.RecordSize, max(time.Now().Year(), 2026)+1)
			if err != nil {
				return err
			}
			dec.layout = l
			p = begin
		}
		return dec.push(p)
	})
	if err == nil && dec.seen == 0 && r.count > 0 {
		err = d.bad("the terminal counts %d records and sends none", r.count)
	}
	if err != nil {
		return gatepost.LogRead{}, err
	}
	if err := dec.flush(); err != nil {
		return gatepost.LogRead{}, err
	}
	next := r.next(dec, dec.seen)
	dropped := r.old.Seen - dec.found
	switch {
	case r.old.Seen == 0:
	case dropped == 0:
		next.Wrapped = r.old.Wrapped && r.atCapacity()
		if triedTail && r.env.State != nil {
			r.env.Log.Info("this terminal cannot read its log from the middle; each new record costs a whole read")
			err = r.env.State.Put(ctx, keyTail, "no")
		}
	case dec.found > 0:
		next.Wrapped = r.atCapacity()
		if !r.old.Wrapped || !next.Wrapped {
			err = r.tell(ctx, "log_wrapped", "the terminal's log is full and drops its oldest records", dropped)
		}
	case dec.seen < r.old.Seen:
		err = r.tell(ctx, "log_cleared", "the terminal's log was cleared", 0)
	default:
		err = r.tell(ctx, "log_rewritten", "the terminal's log is not the one that was read before", 0)
	}
	if err != nil {
		return gatepost.LogRead{}, err
	}
	short := dec.seen < r.count
	if short && r.old.Count != next.Count {
		r.env.Log.Warn("the terminal sent fewer records than it counts", "count", dec.seen)
	}
	return gatepost.LogRead{Next: next.text(), Full: !short, Emitted: r.emitted + dec.emitted}, nil
}
