package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"gatepost"
	"gatepost/buffer"
)

func bufferCommand(ctx context.Context, f *flags) error {
	opts := f.agentFlags()
	limit := f.Int("limit", 20, "ls: show the newest `N` records, 1 to 1000")
	parked := f.Bool("parked", false, "ls: show the records that an uplink will never take")
	words, err := f.take("stat|ls")
	if err != nil {
		return err
	}
	switch words[0] {
	case "stat":
		return bufferStat(ctx, opts)
	case "ls":
		if *limit < 1 || *limit > 1000 {
			return usagef("buffer: --limit: %d is not between 1 and 1000", *limit)
		}
		if *parked {
			return bufferParked(ctx, opts, *limit)
		}
		return bufferList(ctx, opts, *limit)
	}
	return usagef("buffer: there is no %q%s; want stat or ls", words[0], didYouMean(words[0], []string{"stat", "ls"}))
}

func bufferStat(ctx context.Context, opts agentFlags) error {
	var s buffer.Stats
	raw, err := opts.ask(ctx, "/v1/buffer", &s)
	if err != nil {
		return err
	}
	if *opts.json {
		return printJSON(raw)
	}
	fmt.Println(bufferLine(&s))
	fmt.Printf("log %s, newest record %d\n", s.Log, s.Head)
	fmt.Printf("%d remembered so that they are refused as doubles\n", s.Seen)
	fmt.Printf("written since start: %s in %d commits, %d syncs\n", size(s.Written), s.Commits, s.Syncs)
	fmt.Println()
	t := newTable(os.Stdout, "UPLINK", "WAITING", "BYTES", "OLDEST", "PARKED")
	for _, id := range slices.Sorted(maps.Keys(s.Uplinks)) {
		b := s.Uplinks[id]
		oldest := "-"
		if b.Records > 0 {
			oldest = span(time.Duration(b.Oldest * float64(time.Second)))
		}
		t.row(id, fmt.Sprint(b.Records), size(b.Bytes), oldest, fmt.Sprint(b.Parked))
	}
	t.flush()
	return nil
}

// bufferLine is the state of the buffer in one line.
func bufferLine(s *buffer.Stats) string {
	line := fmt.Sprintf("%d records (%s) in a file of %s", s.Records, size(s.Bytes), size(s.File))
	if s.Parked > 0 {
		line += fmt.Sprintf(", %d parked (gatepost buffer ls --parked)", s.Parked)
	}
	if s.Full {
		line += "; FULL: terminals keep what they have until an uplink takes records"
	}
	return line
}

// record is a record as protocol v1 has it, as far as a list shows it.
type record struct {
	ID       gatepost.ID       `json:"id"`
	Seq      int64             `json:"seq"`
	Device   gatepost.DeviceID `json:"device"`
	Kind     gatepost.Kind     `json:"kind"`
	Time     string            `json:"time"`
	TimeRaw  string            `json:"time_raw"`
	Received time.Time         `json:"received"`
	Data     json.RawMessage   `json:"data"`
}

// when is the best time there is: the instant, the terminal's own words, or when it came.
func (r *record) when() string {
	switch {
	case r.Time != "":
		return r.Time
	case r.TimeRaw != "":
		return r.TimeRaw + " (as told)"
	}
	return r.Received.Local().Format(time.RFC3339)
}

// summary is a record's data in a few words.
func (r *record) summary() string {
	var d struct {
		gatepost.Punch
		gatepost.Event
		gatepost.Status
		Result gatepost.ResultStatus `json:"status"`
		Verb   string                `json:"command"`
	}
	if json.Unmarshal(r.Data, &d) != nil {
		return string(r.Data)
	}
	switch r.Kind {
	case gatepost.KindPunch:
		return fmt.Sprintf("user %s, %s, %s", d.User, d.Method, d.Direction)
	case gatepost.KindEvent:
		if d.Message != "" {
			return d.Name + ": " + d.Message
		}
		return d.Name
	case gatepost.KindStatus:
		if d.Reason != "" {
			return string(d.State) + ": " + d.Reason
		}
		return string(d.State)
	case gatepost.KindResult:
		return d.Verb + " " + string(d.Result)
	}
	return string(r.Data)
}

func bufferList(ctx context.Context, opts agentFlags, limit int) error {
	var rs []record
	raw, err := opts.ask(ctx, fmt.Sprintf("/v1/records?limit=%d", limit), &rs)
	if err != nil {
		return err
	}
	if *opts.json {
		return printJSON(raw)
	}
	if len(rs) == 0 {
		fmt.Println("no records in the buffer")
		return nil
	}
	t := newTable(os.Stdout, "SEQ", "TIME", "DEVICE", "KIND", "WHAT")
	for i := range rs {
		r := &rs[i]
		t.row(fmt.Sprint(r.Seq), r.when(), dash(string(r.Device)), string(r.Kind), r.summary())
	}
	t.flush()
	return nil
}

func bufferParked(ctx context.Context, opts agentFlags, limit int) error {
	var ps []struct {
		Uplink string    `json:"uplink"`
		Reason string    `json:"reason"`
		At     time.Time `json:"at"`
		Record record    `json:"record"`
	}
	raw, err := opts.ask(ctx, fmt.Sprintf("/v1/parked?limit=%d", limit), &ps)
	if err != nil {
		return err
	}
	if *opts.json {
		return printJSON(raw)
	}
	if len(ps) == 0 {
		fmt.Println("no parked records")
		return nil
	}
	t := newTable(os.Stdout, "SEQ", "TIME", "DEVICE", "KIND", "WHAT", "UPLINK", "PARKED")
	for i := range ps {
		p := &ps[i]
		t.row(fmt.Sprint(p.Record.Seq), p.Record.when(), dash(string(p.Record.Device)), string(p.Record.Kind), p.Record.summary(),
			p.Uplink, p.At.Local().Format(time.RFC3339))
		t.reason(p.Reason, "")
	}
	t.flush()
	return nil
}
