package gatepost

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestAppendJSON(t *testing.T) {
	r := Stored{ID: NewID("SN1", KindPunch, "7|x"), Log: "a1", Seq: 5, Device: "gate", Kind: KindPunch,
		Time: time.Date(2026, 11, 22, 8, 30, 15, 0, zone(t, "Asia/Jakarta")), TimeRaw: "2026-11-22T08:30:15",
		Received: time.Date(2026, 11, 22, 1, 30, 16, 250e6, time.UTC), Clock: ClockSynced, Skew: -750 * time.Millisecond, SkewSet: true,
		Data: json.RawMessage(`{"user":"0012","method":"finger","direction":"in"}`)}
	const want = `{"v":1,"id":"%s","log":"a1","seq":5,"agent":"site-042","device":"gate","kind":"punch","time":"2026-11-22T08:30:15+07:00",` +
		`"time_raw":"2026-11-22T08:30:15","received":"2026-11-22T01:30:16.250Z","clock":"synced","skew_ms":-750,"replay":true,` +
		`"data":{"user":"0012","method":"finger","direction":"in"}}`
	if got := string(r.AppendJSON(nil, "site-042", true)); got != fmt.Sprintf(want, r.ID) {
		t.Errorf("got  %s\nwant "+want, got, r.ID)
	}
	odd := Stored{Device: "a\"b\\\n\x00é\xff", Clock: ClockUnsynced, Boot: "b", Mono: time.Second, TimeMark: MarkInvalid, Data: json.RawMessage(`{}`)}
	var back map[string]any
	if err := json.Unmarshal(odd.AppendJSON(nil, `"`, false), &back); err != nil {
		t.Errorf("%s: %v", odd.AppendJSON(nil, `"`, false), err)
	}
	if _, ok := back["time"]; ok || back["mono_ms"] != 1000.0 || back["time_mark"] != "invalid" {
		t.Errorf("%v", back)
	}
}

// TestIDsNeverChange: an id is for ever; a build that hashes otherwise would double every punch in the field.
func TestIDsNeverChange(t *testing.T) {
	if got := NewID("CKUH1234", KindPunch, "12|2026-11-22T08:30:15|0|0").String(); got != "5100802fcac4780eb4675ac3cb78732c" {
		t.Errorf("got %s", got)
	}
	var back ID
	id := NewID("a", KindPunch, "b")
	if err := back.UnmarshalText([]byte(id.String())); err != nil || back != id {
		t.Errorf("%s came back as %s, %v", id, back, err)
	}
	if err := back.UnmarshalText([]byte("12")); err == nil {
		t.Error("a short id was taken")
	}
	if NewID("ab", KindPunch, "c") == NewID("a", KindPunch, "bc") {
		t.Error("identity and key run together")
	}
}

func TestSecretsStaySecret(t *testing.T) {
	s := NewSecret("hunter2")
	b, err := json.Marshal(map[string]any{"s": s})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "s", s)
	for _, text := range []string{string(b), log.String(), fmt.Sprint(s), fmt.Sprintf("%#v %+v", s, struct{ S Secret }{s})} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "(secret)") {
			t.Errorf("%s", text)
		}
	}
}

func TestClassOf(t *testing.T) {
	hinted := &Fault{Class: Permanent, Err: &Fault{Class: Misconfigured, Hint: "look here", Err: errors.New("x")}}
	for _, c := range []struct {
		err  error
		want Class
		hint string
	}{
		{nil, Temporary, ""},
		{errors.New("x"), Temporary, ""},
		{fmt.Errorf("y: %w", errors.ErrUnsupported), Unsupported, ""},
		{fmt.Errorf("y: %w", hinted), Permanent, "look here"},
	} {
		if got := ClassOf(c.err); got != c.want || HintOf(c.err) != c.hint {
			t.Errorf("%v: %s %q, want %s %q", c.err, got, HintOf(c.err), c.want, c.hint)
		}
	}
}
