package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/google/go-cmp/cmp"

	"gatepost"
)

// zkOptions and mqttOptions are stand-ins with the options of the real ones, and one of each type.
type zkOptions struct {
	Address  string          `yaml:"address"`
	Port     int             `yaml:"port"`
	Password gatepost.Secret `yaml:"password"`
	Timeout  time.Duration   `yaml:"timeout"`
	Lenient  bool            `yaml:"lenient"`
}

type mqttOptions struct {
	URL      string          `yaml:"url"`
	URLs     []string        `yaml:"urls"`
	Username string          `yaml:"username"`
	Password gatepost.Secret `yaml:"password"`
	TLS      struct {
		CAFile   string          `yaml:"ca_file"`
		CertFile string          `yaml:"cert_file"`
		Key      gatepost.Secret `yaml:"key"`
	} `yaml:"tls"`
	Window uint8 `yaml:"window"`
}

type (
	fakeDevice struct {
		gatepost.Device
		zkOptions
	}
	fakeUplink struct {
		gatepost.Uplink
		mqttOptions
		agent string
	}
)

func newZK(opts gatepost.Decoder, _ gatepost.Env) (gatepost.Device, error) {
	o := zkOptions{Timeout: 5 * time.Second}
	if err := opts(&o); err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	var errs []error
	if o.Address == "" {
		errs = append(errs, &gatepost.Fault{Class: gatepost.Misconfigured, Hint: "see Menu > Comm. > Ethernet on the terminal", Err: errors.New("address is missing")})
	} else if _, _, err := net.SplitHostPort(o.Address); strings.Contains(o.Address, "/") || err != nil && strings.Contains(o.Address, ":") {
		errs = append(errs, fmt.Errorf("address: %q is not HOST or HOST:PORT", o.Address))
	}
	if strings.Trim(o.Password.Reveal(), "0123456789") != "" {
		errs = append(errs, errors.New("password: a comm key has digits only"))
	}
	return fakeDevice{zkOptions: o}, errors.Join(errs...)
}

func newMQTT(opts gatepost.Decoder, env gatepost.UplinkEnv) (gatepost.Uplink, error) {
	var o mqttOptions
	if err := opts(&o); err != nil {
		return nil, err
	}
	for i, u := range o.URLs {
		if !strings.Contains(u, "://") {
			return nil, fmt.Errorf("urls[%d]: %q has no scheme, such as mqtts://", i, u)
		}
	}
	return fakeUplink{mqttOptions: o, agent: env.Agent}, nil
}

func testKit() Kit {
	return Kit{
		Drivers:   []gatepost.Driver{{Name: "zk", New: newZK}, {Name: "zkpush", New: newZK}},
		Uplinks:   []gatepost.UplinkDriver{{Name: "mqtt", New: newMQTT}},
		Getenv:    func(name string) string { return map[string]string{"GATE_KEY": "0042"}[name] },
		BoardID:   func() string { return "gp-01234567" },
		LocalZone: func() string { return "Asia/Jakarta" },
	}
}

// TestBad reads each file of mistakes. Its last lines, "#want LINE:COL: TEXT", are what must be said, all of it.
func TestBad(t *testing.T) {
	files, err := filepath.Glob("testdata/bad-*.yaml")
	if err != nil || len(files) < 25 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "bad-"), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := ""
			for line := range strings.Lines(string(data)) {
				if text, ok := strings.CutPrefix(line, "#want "); ok {
					want += "config.yaml:" + text
				}
			}
			kit := testKit()
			if strings.Contains(file, "board") {
				kit.LocalZone = func() string { return "Etc/UTC" }
			}
			_, err = Parse("config.yaml", data, kit)
			got := ""
			var ms Mistakes
			if errors.As(err, &ms) {
				for _, m := range ms {
					got += m.String() + "\n"
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
