package mqtt

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"

	"gatepost"
)

// message is one publish and how many records it carries.
type message struct {
	topic   string
	payload []byte
	records int
}

// flight is a message that was sent and is not confirmed yet.
type flight struct {
	token   paho.Token
	bytes   int
	ahead   int // in flight on the lane when it was sent, itself included
	records int
	at      time.Time
}

// Send keeps the window full and waits for the oldest confirmation; brokers confirm in order.
func (l *link) Send(ctx context.Context, rs []gatepost.Stored, replay bool) (confirmed int, err error) {
	lane := l.live
	if replay {
		lane = l.backlog
	}
	var flights []flight // oldest first
	defer func() {
		for _, f := range flights {
			lane.leave(f.bytes, 0, 0)
		}
	}()
	patience := time.NewTimer(l.up.patience())
	defer patience.Stop()

	var m message // built, not sent yet
	var stop error
	for {
		for stop == nil && len(rs) > 0 {
			if m.records == 0 {
				if m, stop = l.up.message(rs, replay, lane.room()); stop != nil {
					break
				}
			}
			ahead, wait := lane.enter(len(m.payload))
			if wait == nil {
				flights = append(flights, flight{l.client.Publish(m.topic, 1, false, m.payload), len(m.payload), ahead, m.records, time.Now()})
				rs, m = rs[m.records:], message{}
				continue
			}
			if len(flights) > 0 {
				break // what must be confirmed first is our own
			}
			select {
			case <-wait:
			case <-l.done:
				return confirmed, l.Err()
			case <-ctx.Done():
				return confirmed, context.Cause(ctx)
			}
		}
		if len(flights) == 0 {
			return confirmed, stop
		}

		f := flights[0]
		patience.Reset(l.up.patience())
		select {
		case <-f.token.Done():
		case <-l.done:
			return confirmed, l.Err()
		case <-ctx.Done():
			return confirmed, context.Cause(ctx)
		case <-patience.C:
			l.fail(fmt.Errorf("the broker has confirmed nothing for %v", l.up.patience()))
			return confirmed, l.Err()
		}
		if err := f.token.Error(); err != nil {
			return confirmed, l.lost(err)
		}
		lane.leave(f.bytes, f.ahead, time.Since(f.at))
		confirmed += f.records
		flights = flights[1:]
	}
}

// patience is how long a confirmation may take: on a link so slow that a batch needs timeout to be written at all, others
// may be ahead of it.
func (u *uplink) patience() time.Duration { return 3 * u.Timeout }

// message makes one publish of the first of rs: one live record or one result, or a batch of up to room bytes. The error
// is Permanent and about rs[0].
func (u *uplink) message(rs []gatepost.Stored, replay bool, room int) (message, error) {
	if !replay || rs[0].Kind == gatepost.KindResult {
		payload, err := u.record(nil, &rs[0], replay)
		if err != nil {
			return message{}, err
		}
		return message{u.topics.of(rs[0].Device, rs[0].Kind), payload, 1}, nil
	}
	room = min(room, u.BatchBytes)
	batch := []byte{'['}
	n := 0
	for n < len(rs) && n < u.BatchRecords && rs[n].Kind != gatepost.KindResult {
		end := len(batch)
		if n > 0 {
			batch = append(batch, ',')
		}
		longer, err := u.record(batch, &rs[n], true)
		if err != nil && n == 0 {
			return message{}, err
		}
		if err != nil || n > 0 && len(longer) >= room {
			batch = batch[:end]
			break
		}
		batch = longer
		n++
	}
	batch = append(batch, ']')
	if u.Gzip {
		batch = compress(batch)
	}
	return message{u.topics.batch, batch, n}, nil
}

// record appends r as it goes on the wire. It refuses what must never be published; the error is Permanent.
func (u *uplink) record(dst []byte, r *gatepost.Stored, replay bool) ([]byte, error) {
	if r.Device != "" && !fitsTopic(string(r.Device)) {
		return nil, permanent("device id %q does not fit into a topic", r.Device)
	}
	if !fitsTopic(string(r.Kind)) {
		return nil, permanent("record kind %q does not fit into a topic", r.Kind)
	}
	if !json.Valid(r.Data) {
		return nil, permanent("the record's data is not JSON")
	}
	if dst == nil {
		dst = make([]byte, 0, len(r.Data)+384)
	}
	start := len(dst)
	if r.Kind == gatepost.KindResult {
		var err error
		if dst, err = appendResult(dst, r); err != nil {
			return nil, err
		}
	} else {
		dst = r.AppendJSON(dst, u.env.Agent, replay)
	}
	if size := len(dst) - start; size+2 > u.BatchBytes { // with the brackets of a batch
		return nil, permanent("the record has %d bytes, more than batch_bytes (%d) allows", size, u.BatchBytes)
	}
	return dst, nil
}

func permanent(format string, args ...any) error {
	return &gatepost.Fault{Class: gatepost.Permanent, Err: fmt.Errorf(format, args...)}
}

// appendResult appends a result in its bare form: its own fields, with the place in the log in front.
func appendResult(dst []byte, r *gatepost.Stored) ([]byte, error) {
	data := bytes.TrimSpace(r.Data)
	if len(data) == 0 || data[0] != '{' {
		return nil, permanent("the result is not a JSON object")
	}
	log, err := json.Marshal(r.Log)
	if err != nil {
		return nil, err // a string always encodes
	}
	dst = append(dst, `{"v":1,"log":`...)
	dst = append(dst, log...)
	dst = append(dst, `,"seq":`...)
	dst = strconv.AppendInt(dst, r.Seq, 10)
	dst = append(dst, `,"received":"`...)
	dst = r.Received.UTC().AppendFormat(dst, "2006-01-02T15:04:05.000Z07:00")
	dst = append(dst, '"')
	return appendFields(dst, data), nil
}

// appendFields closes the object begun in dst with the fields of object, which is valid JSON.
func appendFields(dst, object []byte) []byte {
	fields := bytes.TrimSpace(object[1:])
	if fields[0] != '}' {
		dst = append(dst, ',')
	}
	return append(dst, fields...)
}

// document is v, which encodes to an object, with the protocol's version in front.
func document(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if b[0] != '{' {
		return nil, errors.New("not an object")
	}
	return appendFields([]byte(`{"v":1`), b), nil
}

func compress(b []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(b) // a bytes.Buffer takes all
	_ = z.Close()
	return out.Bytes()
}
