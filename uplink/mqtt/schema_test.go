package mqtt

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"gatepost"
	"gatepost/uplink/uplinktest"
)

const docs = "../../docs/"

// schemas compiles docs/schema. Here, and only here, a property that the schema does not name is a mistake: consumers
// must ignore it, but we must have documented it.
func schemas(t *testing.T) map[string]*jsonschema.Schema {
	t.Helper()
	files, err := filepath.Glob(docs + "schema/*.json")
	if err != nil || len(files) < 11 {
		t.Fatal(len(files), err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		closeObjects(doc)
		if err := c.AddResource("file:///schema/"+filepath.Base(f), doc); err != nil {
			t.Fatal(err)
		}
	}
	all := make(map[string]*jsonschema.Schema)
	for _, f := range files {
		s, err := c.Compile("file:///schema/" + filepath.Base(f))
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(f), ".json")] = s
	}
	return all
}

// closeObjects forbids unnamed properties wherever an object's properties are listed together with its type.
func closeObjects(schema any) {
	switch s := schema.(type) {
	case map[string]any:
		if _, listed := s["properties"]; listed && s["type"] == "object" && s["additionalProperties"] == nil {
			s["additionalProperties"] = false
		}
		for _, v := range s {
			closeObjects(v)
		}
	case []any:
		for _, v := range s {
			closeObjects(v)
		}
	}
}

func validate(s *jsonschema.Schema, text string) error {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}

// TestPublishedMessagesFitTheirSchemas publishes one of everything and holds what a second client receives against docs/schema.
func TestPublishedMessagesFitTheirSchemas(t *testing.T) {
	all := schemas(t)
	broker := startMosquitto(t, "")
	p := startProxy(t, broker.addr())
	backend := listen(t, broker.url(), base+"#")

	hello := uplinktest.Hello("s1")
	hello.Birth.Devices = []gatepost.BirthDevice{
		{ID: "gate", Driver: "zk", Model: "F18", Serial: "SN1", Firmware: "6.60", Doors: 1, Zone: "Asia/Jakarta", Verbs: []string{"unlock"},
			TTL: map[string]float64{"unlock": 10}, State: gatepost.StateOnline},
		{ID: "new", Driver: "zk"},
	}
	hello.Birth.Devices[1].State = gatepost.StateConnecting
	u := newUplink(t, "url: "+p.url())
	link, err := u.Dial(t.Context(), hello, ignore)
	if err != nil {
		t.Fatal(err)
	}
	rs := everyRecord(t)
	for _, replay := range []bool{false, true} {
		if n, err := link.Send(t.Context(), rs, replay); n != len(rs) || err != nil {
			t.Fatal(n, err)
		}
	}
	warm := 41.5
	for _, h := range []gatepost.Heartbeat{
		{Time: time.Now(), Clock: gatepost.ClockUnsynced},
		{Time: time.Now(), Clock: gatepost.ClockSynced, Uptime: 12.5, Session: "s1", Challenge: "ch", Backlog: gatepost.Backlog{Records: 1, Bytes: 200, Oldest: 0.2},
			Devices: map[string]int{"online": 1, "total": 2}, Board: gatepost.BoardHealth{TemperatureC: &warm, DiskFreeMiB: &warm, MemFreeMiB: &warm, RSSMiB: &warm}},
	} {
		if err := link.Beat(t.Context(), h); err != nil {
			t.Error(err)
		}
	}
	bye(t, link) // offline: stopped
	lost := connect(t, u, "s2", nil)
	p.cut() // offline: lost
	<-lost.Done()
	waitFor(t, "the last will", func() bool {
		states := backend.on(base + "state")
		return len(states) > 0 && strings.Contains(states[len(states)-1], `"lost"`)
	})

	seen := make(map[string]int)
	for _, h := range backend.all() {
		kind := h.topic[strings.LastIndexByte(h.topic, '/')+1:]
		seen[kind]++
		schema := all[kind]
		switch kind {
		case "punch", "event", "telemetry", "status":
			schema = all["record"]
		}
		if schema == nil {
			t.Errorf("%s is no topic of docs/protocol.md", h.topic)
			continue
		}
		if err := validate(schema, h.payload); err != nil {
			t.Errorf("%s: %v\n%s", h.topic, err, h.payload)
		}
	}
	for _, kind := range []string{"state", "register", "heartbeat", "punch", "event", "telemetry", "status", "batch", "result"} {
		if seen[kind] == 0 {
			t.Errorf("nothing came on …/%s", kind)
		}
	}
}

// everyRecord is a record for each field that one may have.
func everyRecord(t *testing.T) []gatepost.Stored {
	t.Helper()
	var rs []gatepost.Stored
	add := func(d gatepost.DeviceID, data gatepost.Data, more func(*gatepost.Stored)) {
		b, err := json.Marshal(data)
		if err != nil {
			t.Fatal(err)
		}
		seq := int64(len(rs) + 1)
		r := gatepost.Stored{ID: gatepost.NewID("x", data.Kind(), string(b)), Log: "log", Seq: seq, Device: d, Kind: data.Kind(),
			Received: time.Now(), Clock: gatepost.ClockSynced, Data: b}
		if more != nil {
			more(&r)
		}
		rs = append(rs, r)
	}
	add("gate", gatepost.Punch{User: "0012", Method: gatepost.MethodFace, Direction: gatepost.DirectionIn}, func(r *gatepost.Stored) {
		r.Time, r.TimeRaw, r.Skew, r.SkewSet = time.Now(), "2026-11-22T08:01:17", -time.Second, true
	})
	add("gate", gatepost.Punch{Card: "12", Door: 2, Method: gatepost.MethodOther, Direction: gatepost.DirectionNone, Outcome: gatepost.OutcomeDenied, Raw: map[string]int{"verify": 3}},
		func(r *gatepost.Stored) {
			r.TimeRaw, r.TimeMark, r.Clock, r.Boot, r.Mono = "2026-02-31T08:01:17", gatepost.MarkInvalid, gatepost.ClockUnsynced, "boot", time.Minute
		})
	add("gate", gatepost.Event{Name: "door", Message: "door opened", Detail: map[string]int{"door": 1}}, nil)
	add("", gatepost.Event{Name: "agent_started"}, nil)
	add("gate", gatepost.Telemetry{Values: map[string]float64{"temperature_c": 41.5}}, nil)
	add("gate", gatepost.Status{State: gatepost.StateBackoff, Reason: "no answer", Hint: "is it plugged in?"}, nil)
	add("gate", gatepost.Result{ID: "c1", Device: "gate", Verb: "unlock", Status: gatepost.StatusDone, Data: json.RawMessage(`{"door":1}`)}, nil)
	add("", gatepost.Result{Verb: "", Status: gatepost.StatusRejected, Error: &gatepost.ResultError{Code: "bad_json", Message: "not JSON"}}, nil)
	return rs
}

// TestExamplesFitTheirSchemas reads the blocks of docs/protocol.md that begin with ```json and the name of a schema.
func TestExamplesFitTheirSchemas(t *testing.T) {
	all := schemas(t)
	b, err := os.ReadFile(docs + "protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?s)```json *([a-z]*)\n(.*?)```").FindAllStringSubmatch(string(b), -1) {
		name, text := m[1], m[2]
		if all[name] == nil {
			t.Errorf("no schema %q for %s", name, text)
			continue
		}
		seen[name] = true
		if err := validate(all[name], text); err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
		if name == "command" {
			if _, err := parseCommand([]byte(text)); err != nil {
				t.Errorf("%v\n%s", err, text)
			}
		}
	}
	for name := range all {
		if !seen[name] {
			t.Errorf("docs/protocol.md has no example for schema/%s.json", name)
		}
	}
	for _, code := range []string{"bad_json", "bad_args", "no_id", "unknown_command", "unknown_device", "retained", "no_freshness", "stale", "wrong_challenge",
		"expired", "unsupported", "unavailable", "door_missing", "refused", "no_answer", "died", "busy"} {
		if !bytes.Contains(b, []byte("| `"+code+"` |")) {
			t.Errorf("docs/protocol.md does not explain the code %s", code)
		}
	}
}
