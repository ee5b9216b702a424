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

const good = `agent:
  data_dir: data
devices:
  - id: gate
    driver: zk
    address: 192.168.1.205:4370
    password: 0017
  - id: canteen
    driver: zk
    address: 192.168.1.206
    password_file: key.txt
    timezone: Asia/Makassar
    enabled: false
    poll: 30s
    full_read: 1d
    sync_clock: on
  - {id: yard, driver: zkpush, address: 192.168.1.206, password_env: GATE_KEY, sync_clock: 45s}
uplinks:
  - id: cloud
    driver: mqtt
    urls: [mqtts://a, mqtts://b]
    tls: {key_file: key.txt}
  - {id: second, driver: mqtt, url: mqtt://c, from: now, required: yes}
buffer: {max_size: 1.5GiB, max_age: 7d}
listen: []
`

// write puts a file into a new directory.
func write(t *testing.T, name, content string, mode os.FileMode) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustParse(t *testing.T, name, data string) *Config {
	t.Helper()
	c, err := Parse(name, []byte(data), testKit())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestGood(t *testing.T) {
	key := write(t, "key.txt", "4711\r\n", 0o600)
	path := filepath.Join(filepath.Dir(key), "config.yaml")
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path, testKit())
	if err != nil {
		t.Fatal(err)
	}
	a := c.Agent
	if got, want := fmt.Sprint(a.ID, a.DataDir, a.ZoneName, a.Zone, a.Clock), fmt.Sprint("gp-01234567", filepath.Dir(path)+"/data", "Asia/Jakarta", "Asia/Jakarta", ClockAuto); got != want {
		t.Errorf("agent: %s, want %s", got, want)
	}
	if want := (Buffer{3 << 29, 7 * 24 * time.Hour}); c.Buffer != want {
		t.Errorf("buffer: %v, want %v", c.Buffer, want)
	}
	if len(c.Warnings) != 0 {
		t.Errorf("warnings: %v", c.Warnings)
	}
	for i, want := range []struct {
		id, driver, zone, key string
		enabled               bool
		poll, full, sync      time.Duration
	}{
		{"gate", "zk", "Asia/Jakarta", "0017", true, 0, time.Hour, 0},
		{"canteen", "zk", "Asia/Makassar", "4711", false, 30 * time.Second, 24 * time.Hour, DefaultSyncClock},
		{"yard", "zkpush", "Asia/Jakarta", "0042", true, 0, time.Hour, 45 * time.Second},
	} {
		d := c.Devices[i]
		dev := d.Device.(fakeDevice)
		got := fmt.Sprint(d.ID, d.Driver, d.ZoneName, d.Zone, dev.Password.Reveal(), d.Enabled, d.Poll, d.FullRead, d.SyncClock, dev.Timeout)
		if want := fmt.Sprint(want.id, want.driver, want.zone, want.zone, want.key, want.enabled, want.poll, want.full, want.sync, 5*time.Second); got != want {
			t.Errorf("device %d: %s, want %s", i, got, want)
		}
	}
	for i, want := range []struct {
		id       string
		required bool
		oldest   bool
		urls     int
		key      string
	}{{"cloud", true, true, 2, "4711"}, {"second", true, false, 0, ""}} {
		u := c.Uplinks[i]
		up := u.Uplink.(fakeUplink)
		if u.ID != want.id || u.Required != want.required || u.FromOldest != want.oldest || len(up.URLs) != want.urls || up.TLS.Key.Reveal() != want.key || up.agent != "gp-01234567" {
			t.Errorf("uplink %d: %+v", i, u)
		}
	}
}

// TestHash wants what a reload compares to change with each setting, and with nothing else.
func TestHash(t *testing.T) {
	path := filepath.Join(filepath.Dir(write(t, "key.txt", "4711", 0o600)), "config.yaml")
	before := mustParse(t, path, good)
	changed := func(old, new string) string {
		t.Helper()
		data := strings.Replace(good, old, new, 1)
		if data == good {
			t.Fatalf("no %q", old)
		}
		after, names := mustParse(t, path, data), ""
		for i := range before.Devices {
			if after.Devices[i].Hash != before.Devices[i].Hash {
				names += string(before.Devices[i].ID) + " "
			}
		}
		for i := range before.Uplinks {
			if after.Uplinks[i].Hash != before.Uplinks[i].Hash {
				names += before.Uplinks[i].ID + " "
			}
		}
		return names
	}
	for _, c := range []struct{ old, new, want string }{
		{"    driver: zk\n    address: 192.168.1.205:4370\n", "    address: '192.168.1.205:4370' # moved\n\n    driver: zk\n", ""},
		{"password: 0017", "password: 17", "gate "},
		{"poll: 30s", "poll: 31s", "canteen "},
		{"Asia/Makassar", "Asia/Jayapura", "canteen "},
		{"agent:", "agent:\n  timezone: Asia/Jayapura", "gate yard "},
		{"agent:", "agent:\n  id: site", "cloud second "},
		{"mqtts://b", "mqtts://bb", "cloud "},
		{"from: now", "from: oldest", "second "},
		{"max_age: 7d", "max_age: 8d", ""},
	} {
		if got := changed(c.old, c.new); got != c.want {
			t.Errorf("%q to %q changed %q, want %q", c.old, c.new, got, c.want)
		}
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "key.txt"), []byte("4712"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := changed("poll: 30s", "poll: 30s "); got != "canteen cloud " {
		t.Errorf("another secret in the file changed %q", got)
	}
}

func TestSharedSecretIsAWarning(t *testing.T) {
	key := write(t, "key.txt", "4711\n", 0o600)
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	c := mustParse(t, "config.yaml", "devices:\n  - {id: gate, driver: zk, address: a, password_file: "+key+"}\nuplinks:\n  - {id: cloud, driver: mqtt, required: false}\n")
	want := fmt.Sprintf("config.yaml:2:%d: devices \"gate\": password_file: every user of this board can read %s; chmod 600 it\n"+
		"config.yaml:4:3:  uplinks: none is required, so records may be dropped before any uplink confirmed them", 55, key)
	if diff := cmp.Diff(want, c.Warnings.Error()); diff != "" {
		t.Error(diff)
	}
}

// TestSecretsStaySecret wants no mistake to repeat a secret.
func TestSecretsStaySecret(t *testing.T) {
	for _, line := range []string{"password: s3cret", "password: [s3cret]", "password: {s3cret: 1}", "password_file: [s3cret]", "pasword: s3cret"} {
		_, err := Parse("c", []byte("devices:\n  - {id: gate, driver: zk, address: a, "+line+"}\nuplinks: [{id: cloud, driver: mqtt}]"), testKit())
		if err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestSecretFiles(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"empty": "\n", "long": strings.Repeat("x", maxSecret+1), "spaces": " a b \n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ name, value, err string }{
		{"empty", "", "is empty"},
		{"long", "", "is too long for a secret"},
		{"spaces", " a b ", "<nil>"},
		{"none", "", "no such file or directory"},
		{"", "", "is not a file"},
	} {
		value, _, err := readSecret(filepath.Join(dir, c.name))
		if value != c.value || fmt.Sprint(err) != c.err {
			t.Errorf("%q: %q, %v; want %q, %s", c.name, value, err, c.value, c.err)
		}
	}
}

func TestMistakesLineUp(t *testing.T) {
	ms := Mistakes{{"config.yaml", 6, 7, "one"}, {"config.yaml", 17, 13, "two"}, {"config.yaml", 0, 0, "three"}}
	want := "config.yaml:6:7:   one\nconfig.yaml:17:13: two\nconfig.yaml:       three"
	if got := ms.Error(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestNoFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "config.yaml"), testKit())
	if !errors.Is(err, os.ErrNotExist) || gatepost.HintOf(err) == "" {
		t.Errorf("%v", err)
	}
}

func TestTooLarge(t *testing.T) {
	path := write(t, "config.yaml", strings.Repeat("#", 2*maxFile), 0o600)
	if _, err := Load(path, testKit()); err == nil || !strings.HasSuffix(err.Error(), "is larger than 1 MiB: not a config file") {
		t.Errorf("%v", err)
	}
}

// put writes files below a root.
func put(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if to, ok := strings.CutPrefix(content, "-> "); ok {
			if err := os.Symlink(to, path); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBoardID(t *testing.T) {
	const serial, machine = "10000000a1b2c3d4\x00", "0123456789abcdef0123456789abcdef\n"
	net := map[string]string{
		"etc/machine-id":                          machine,
		"sys/class/net/eth0/device/x":             "",
		"sys/class/net/eth0/address":              "dc:a6:32:00:00:01\n",
		"sys/class/net/eth0/addr_assign_type":     "0\n",
		"sys/class/net/docker0/address":           "02:42:00:00:00:01\n",
		"sys/class/net/dongle/device/subsystem":   "-> ../../bus/usb",
		"sys/class/net/dongle/address":            "00:e0:4c:00:00:02\n",
		"sys/class/net/dongle/addr_assign_type":   "0\n",
		"sys/class/net/aprivacy/device/x":         "",
		"sys/class/net/aprivacy/address":          "ea:00:00:00:00:03\n",
		"sys/class/net/aprivacy/addr_assign_type": "1\n",
	}
	pi := map[string]string{"proc/device-tree/serial-number": serial, "etc/machine-id": machine}
	clone := map[string]string{"proc/device-tree/serial-number": "10000000ffffffff\x00", "etc/machine-id": machine}
	zeros := map[string]string{"proc/device-tree/serial-number": "0000000000000000\x00", "etc/machine-id": machine}
	id := map[string]string{}
	for name, files := range map[string]map[string]string{"pi": pi, "clone": clone, "zeros": zeros, "pc": net, "bare": {"etc/machine-id": machine}, "nothing": nil} {
		root := t.TempDir()
		put(t, root, files)
		id[name] = BoardID(root)
		if id[name] != BoardID(root) {
			t.Errorf("%s has two ids", name)
		}
	}
	if !idShape.MatchString(id["pi"]) || len(id["pi"]) != len("gp-01234567") {
		t.Errorf("id %q", id["pi"])
	}
	if id["pi"] == id["clone"] || id["zeros"] != id["bare"] || id["pc"] == id["bare"] || id["nothing"] != "" {
		t.Errorf("%v", id)
	}
	root := t.TempDir()
	delete(net, "sys/class/net/dongle/address")
	delete(net, "sys/class/net/docker0/address")
	delete(net, "sys/class/net/aprivacy/address")
	put(t, root, net)
	if BoardID(root) != id["pc"] {
		t.Error("a dongle, a bridge or a random address named the board")
	}
}

func TestLocalZone(t *testing.T) {
	t.Setenv("TZ", "")
	for want, files := range map[string]map[string]string{
		"Asia/Jakarta":  {"etc/localtime": "-> /usr/share/zoneinfo/Asia/Jakarta", "etc/timezone": "Etc/UTC\n"},
		"Europe/Berlin": {"etc/timezone": "Europe/Berlin\n"},
		"":              nil,
	} {
		root := t.TempDir()
		put(t, root, files)
		if got := LocalZone(root); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	t.Setenv("TZ", ":America/Lima")
	if got := LocalZone(t.TempDir()); got != "America/Lima" {
		t.Errorf("TZ: %q", got)
	}
}

func TestUnits(t *testing.T) {
	for text, want := range map[string]size{"512MiB": 512 << 20, "2 gb": 2e9, "0.5KiB": 512, "1": 0, "-1MiB": 0, "MiB": 0, "NaNMiB": 0, "1e30TB": 0} {
		var s size
		if err := s.UnmarshalText([]byte(text)); s != want || (err == nil) != (want > 0) {
			t.Errorf("size %s: %d, %v", text, s, err)
		}
	}
	for text, want := range map[string]time.Duration{"30d": 720 * time.Hour, "1.5d": 36 * time.Hour, "90m": 90 * time.Minute, "0s": 0, "-1d": 0, "7": 0, "NaNd": 0, "1e9d": 0} {
		var s span
		if err := s.UnmarshalText([]byte(text)); s != span(want) || (err == nil) != (want > 0) {
			t.Errorf("span %s: %v, %v", text, time.Duration(s), err)
		}
	}
	for text, want := range map[string]time.Duration{"off": 0, "on": DefaultSyncClock, "5s": 5 * time.Second, "never": 0} {
		s := threshold(-1)
		if err := s.UnmarshalText([]byte(text)); s != threshold(want) || err != nil {
			t.Errorf("threshold %s: %v, %v", text, time.Duration(s), err)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	names := []string{"address", "id", "password", "password_file", "port", "zk"}
	for written, want := range map[string]string{
		"prt": "port", "adress": "address", "addres": "address", "Address": "address", "passwordfile": "password_file",
		"pasword": "password", "zkk": "zk", "prot": "port", "ip": "", "x": "", "": "", "hostname": "",
	} {
		if want != "" {
			want = fmt.Sprintf("; did you mean %q?", want)
		}
		if got := didYouMean(written, names); got != want {
			t.Errorf("%s%s, want %s", written, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/bad-*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(good))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("config.yaml", data, testKit())
		ms, ok := err.(Mistakes)
		switch {
		case c == nil && (!ok || len(ms) == 0):
			t.Errorf("neither a config nor mistakes: %v", err)
		case c != nil && err != nil:
			t.Errorf("a config and %v", err)
		}
		lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") + 1
		for _, m := range ms {
			if m.Line > lines+1 || m.Line > 0 && m.Col < 1 || strings.Contains(m.Text, "!!") && !strings.Contains(string(data), "!") {
				t.Errorf("of %d lines: %s", lines, m)
			}
		}
	})
}
