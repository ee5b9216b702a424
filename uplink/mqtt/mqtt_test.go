package mqtt

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"gatepost"
	"gatepost/uplink/uplinktest"
)

const base = "gatepost/v1/site-042/"

func TestConformance(t *testing.T) {
	uplinktest.Run(t, func(t *testing.T) uplinktest.Subject {
		broker := startMosquitto(t, "max_queued_messages 0\nmax_inflight_messages 0\n")
		p := startProxy(t, broker.addr())
		backend := listen(t, broker.url(), base+"#")
		big := uplinktest.Records(1_000_000, 1)[0]
		big.Data = json.RawMessage(`{"user":"` + strings.Repeat("x", 200<<10) + `"}`)
		read := 0
		var ids []gatepost.ID
		return uplinktest.Subject{
			Uplink: newUplink(t, "url: "+p.url(), "timeout: 5s"),
			Received: func() []gatepost.ID {
				backend.mu.Lock()
				news := backend.got[read:]
				read += len(news)
				for _, h := range news {
					ids = append(ids, recordIDs(t, h)...)
				}
				backend.mu.Unlock()
				return ids
			},
			Cut:    p.cut,
			Refuse: p.shut,
			Hold:   p.hold,
			Command: func(id string, d gatepost.DeviceID, verb string) {
				topic := base + "command"
				if d != "" {
					topic = base + "devices/" + string(d) + "/command"
				}
				connected(t, backend.Publish(topic, 1, false, fmt.Sprintf(`{"id":%q,"command":%q}`, id, verb)))
			},
			Online:     func() bool { return strings.Contains(retained(t, broker.url(), base+"state"), `"online"`) },
			Impossible: big,
		}
	})
}

// recordIDs are the ids of the records in a message.
func recordIDs(t testing.TB, h heard) (ids []gatepost.ID) {
	type doc struct {
		ID gatepost.ID `json:"id"`
	}
	var docs []doc
	switch {
	case strings.HasSuffix(h.topic, "/batch"):
		if err := json.Unmarshal([]byte(h.payload), &docs); err != nil {
			t.Errorf("%s: %v", h.topic, err)
		}
	case strings.HasSuffix(h.topic, "/punch"):
		docs = make([]doc, 1)
		if err := json.Unmarshal([]byte(h.payload), &docs[0]); err != nil {
			t.Errorf("%s: %v", h.topic, err)
		}
	}
	for _, d := range docs {
		ids = append(ids, d.ID)
	}
	return ids
}

// BenchmarkSend compares with mosquitto's own client, which publishes lines at QoS 1 to the same broker.
func BenchmarkSend(b *testing.B) {
	broker := startMosquitto(b, "")
	const n = 20_000
	rs := uplinktest.Records(1, n)
	per := func(b *testing.B, took time.Duration) {
		b.ReportMetric(float64(n)*float64(b.N)/took.Seconds(), "records/s")
		b.ReportMetric(0, "ns/op")
	}
	b.Run("mosquitto_pub", func(b *testing.B) {
		var lines strings.Builder
		for i := range rs {
			lines.Write(rs[i].AppendJSON(nil, "site-042", false))
			lines.WriteByte('\n')
		}
		var took time.Duration
		for b.Loop() {
			c := exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", fmt.Sprint(broker.port), "-q", "1", "-t", base+"devices/gate/punch", "-l")
			c.Stdin = strings.NewReader(lines.String())
			began := time.Now()
			if out, err := c.CombinedOutput(); err != nil {
				b.Fatalf("apt-get install mosquitto-clients: %v %s", err, out)
			}
			took += time.Since(began)
		}
		per(b, took)
	})
	for name, replay := range map[string]bool{"single": false, "batch": true} {
		b.Run(name, func(b *testing.B) {
			link := connect(b, newUplink(b, "url: "+broker.url()), "bench-"+name, nil)
			b.ReportAllocs()
			var took time.Duration
			for b.Loop() {
				began := time.Now()
				if got, err := link.Send(b.Context(), rs, replay); got != n || err != nil {
					b.Fatal(got, err)
				}
				took += time.Since(began)
			}
			per(b, took)
		})
	}
}
