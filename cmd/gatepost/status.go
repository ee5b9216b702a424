package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"gatepost"
	"gatepost/agent"
)

func status(ctx context.Context, f *flags) error {
	opts := f.agentFlags()
	if _, err := f.take(); err != nil {
		return err
	}
	var r agent.Report
	raw, err := opts.ask(ctx, "/v1/status", &r)
	if err != nil {
		return err
	}
	if *opts.json {
		return printJSON(raw)
	}
	writeReport(os.Stdout, &r, time.Now())
	return nil
}

func devices(ctx context.Context, f *flags) error {
	opts := f.agentFlags()
	if _, err := f.take(); err != nil {
		return err
	}
	var r agent.Report
	if _, err := opts.ask(ctx, "/v1/status", &r); err != nil {
		return err
	}
	if *opts.json {
		raw, err := json.Marshal(r.Devices)
		if err != nil {
			return err
		}
		return printJSON(raw)
	}
	writeDevices(os.Stdout, r.Devices, time.Now())
	return nil
}

// ask gets path from the agent that is meant, decoded into v and raw.
func (a agentFlags) ask(ctx context.Context, path string, v any) (json.RawMessage, error) {
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	raw, err := c.get(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, fmt.Errorf("the agent's answer: %w", err)
	}
	return raw, nil
}

func printJSON(raw json.RawMessage) error {
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return fmt.Errorf("the agent's answer: %w", err)
	}
	_, err := fmt.Println(strings.TrimSpace(b.String()))
	return err
}

// writeReport shows r as it is at now.
func writeReport(w io.Writer, r *agent.Report, now time.Time) {
	fmt.Fprintf(w, "agent %s, gatepost %s, up %s, clock %s\n", r.Agent, r.Version, span(time.Duration(r.Uptime*float64(time.Second))), clockWords(r.Clock))
	var board []string
	add := func(v *float64, format string) {
		if v != nil {
			board = append(board, fmt.Sprintf(format, *v))
		}
	}
	add(r.Board.TemperatureC, "%.0f °C")
	add(r.Board.DiskFreeMiB, "%.0f MiB of disk free")
	add(r.Board.MemFreeMiB, "%.0f MiB of memory free")
	add(r.Board.RSSMiB, "gatepost takes %.0f MiB")
	if len(board) > 0 {
		fmt.Fprintf(w, "board: %s\n", strings.Join(board, ", "))
	}
	fmt.Fprintf(w, "buffer: %s\n\n", bufferLine(&r.Buffer))

	t := newTable(w, "UPLINK", "DRIVER", "STATE", "FOR", "WAITING", "OLDEST", "PARKED")
	for _, u := range r.Uplinks {
		oldest := "-"
		if u.Backlog.Records > 0 {
			oldest = span(time.Duration(u.Backlog.Oldest * float64(time.Second)))
		}
		t.row(u.ID, u.Driver, u.State, age(now, u.Since), fmt.Sprint(u.Backlog.Records), oldest, fmt.Sprint(u.Backlog.Parked))
		t.reason(u.Reason, u.Hint)
	}
	t.flush()
	fmt.Fprintln(w)
	writeDevices(w, r.Devices, now)
}

func writeDevices(w io.Writer, ds []agent.DeviceReport, now time.Time) {
	if len(ds) == 0 {
		fmt.Fprintln(w, "no devices in the config")
		return
	}
	t := newTable(w, "DEVICE", "DRIVER", "STATE", "FOR", "SERIAL", "MODEL", "DOORS", "LAST CONTACT", "CLOCK OFF BY")
	for _, d := range ds {
		contact, skew := "-", "-"
		if !d.LastContact.IsZero() {
			contact = age(now, d.LastContact) + " ago"
		}
		if d.SkewMS != nil {
			skew = (time.Duration(*d.SkewMS) * time.Millisecond).Round(100 * time.Millisecond).String()
		}
		t.row(string(d.ID), d.Driver, string(d.State), age(now, d.Since), dash(d.Serial), dash(d.Model), fmt.Sprint(d.Doors), contact, skew)
		t.reason(d.Reason, d.Hint)
	}
	t.flush()
}

// table lines columns up and puts reasons, which may be long, below their row.
type table struct {
	w       io.Writer
	rows    bytes.Buffer
	reasons map[int]string // by the row they belong to
	n       int
}

func newTable(w io.Writer, head ...string) *table {
	t := &table{w: w, reasons: map[int]string{}}
	t.row(head...)
	return t
}

func (t *table) row(cells ...string) {
	fmt.Fprintln(&t.rows, strings.Join(cells, "\t"))
	t.n++
}

func (t *table) reason(reason, hint string) {
	s := ""
	if reason != "" {
		s += "    " + reason + "\n"
	}
	if hint != "" {
		s += "    hint: " + hint + "\n"
	}
	t.reasons[t.n] = s
}

func (t *table) flush() {
	var aligned bytes.Buffer
	tw := tabwriter.NewWriter(&aligned, 0, 0, 2, ' ', 0)
	_, _ = tw.Write(t.rows.Bytes()) // a bytes.Buffer never fails
	_ = tw.Flush()
	n := 0
	for line := range strings.Lines(aligned.String()) {
		n++
		fmt.Fprintln(t.w, strings.TrimRight(line, " \n"))
		io.WriteString(t.w, t.reasons[n])
	}
}

func clockWords(clock string) string {
	switch clock {
	case gatepost.ClockSynced:
		return "synchronised"
	case gatepost.ClockUnsynced:
		return "not synchronised yet"
	case gatepost.ClockTrusted:
		return "trusted as configured"
	}
	return clock
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func age(now, since time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return span(max(0, now.Sub(since)))
}

// span is d in one or two units, as people say it.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%d d", d/day)
	case d >= time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%d min", d/time.Minute)
	}
	return fmt.Sprintf("%d s", d/time.Second)
}

// size is n bytes as people say it.
func size(n int64) string {
	const kib, mib = 1 << 10, 1 << 20
	switch {
	case n >= mib:
		return fmt.Sprintf("%.1f MiB", float64(n)/mib)
	case n >= kib:
		return fmt.Sprintf("%.1f KiB", float64(n)/kib)
	}
	return fmt.Sprintf("%d bytes", n)
}
