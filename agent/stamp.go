package agent

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"

	"gatepost"
	"gatepost/buffer"
)

// commandSource is the source under which final results are kept apart: one for each command id.
const commandSource = "commands"

// stamper makes a Record a buffer entry: its id, its instant, and what this board knew of the time when it came.
type stamper struct {
	device   gatepost.DeviceID
	identity string // whose doubles are refused; see gatepost.NewID
	zone     *time.Location
	clock    *boardClock
	skew     time.Duration
	skewSet  bool
}

func (s *stamper) entry(r gatepost.Record, received time.Time) (buffer.Entry, error) {
	data, err := json.Marshal(r.Data)
	if err != nil {
		return buffer.Entry{}, fmt.Errorf("encode a %s: %w", r.Data.Kind(), err)
	}
	e := buffer.Entry{Stored: gatepost.Stored{
		Device:   s.device,
		Kind:     r.Data.Kind(),
		TimeRaw:  string(r.Wall),
		Received: received,
		Clock:    s.clock.word(),
		Skew:     s.skew,
		SkewSet:  s.skewSet,
		Data:     data,
	}}
	if r.Wall != "" {
		e.Time, e.TimeMark = r.Wall.In(s.zone)
	}
	if e.Clock == gatepost.ClockUnsynced {
		e.Boot, e.Mono = s.clock.boot, sinceBoot()
	}
	if r.Key == "" {
		rand.Read(e.ID[:])
		return e, nil
	}
	e.ID = gatepost.NewID(s.identity, e.Kind, r.Key)
	e.Source, e.Minute = s.identity, r.Wall.Minute()
	return e, nil
}

func (s *stamper) entries(rs []gatepost.Record) ([]buffer.Entry, error) {
	received := s.clock.now()
	es := make([]buffer.Entry, len(rs))
	for i, r := range rs {
		e, err := s.entry(r, received)
		if err != nil {
			return nil, err
		}
		es[i] = e
	}
	return es, nil
}

// Record stores what others have to say about the agent itself, such as what the store did with a damaged file.
func (a *Agent) Record(ctx context.Context, e gatepost.Event) error { return a.emit(ctx, e) }

// emit stores facts about the agent itself.
func (a *Agent) emit(ctx context.Context, data ...gatepost.Data) error {
	return a.emitFor(ctx, "", data...)
}

// emitFor stores facts that the agent states about a device: they have no wall time and are never doubles.
func (a *Agent) emitFor(ctx context.Context, id gatepost.DeviceID, data ...gatepost.Data) error {
	s := stamper{device: id, clock: a.clock}
	rs := make([]gatepost.Record, len(data))
	for i, d := range data {
		rs[i].Data = d
	}
	es, err := s.entries(rs)
	if err != nil {
		return err
	}
	_, err = a.store.Put(ctx, es...)
	return err
}
