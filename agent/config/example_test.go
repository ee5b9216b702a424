package config_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"gatepost/agent/config"
	"gatepost/drivers"
	"gatepost/uplink"
)

// TestExample reads the example as it is shipped, with the real drivers: once as it stands, and once with every line
// that is only commented out.
func TestExample(t *testing.T) {
	data, err := os.ReadFile("../../config.yaml.example")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/mqtt.secret", []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(text string) *config.Config {
		t.Helper()
		text = strings.ReplaceAll(text, "/etc/gatepost/", dir+"/")
		c, err := config.Parse("config.yaml.example", []byte(text), config.Kit{Drivers: drivers.All(), Uplinks: uplink.All(),
			BoardID: func() string { return "gp-01234567" }, LocalZone: func() string { return "" }})
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		return c
	}
	c := read(string(data))
	if len(c.Devices) != 1 || len(c.Uplinks) != 1 || c.Devices[0].Driver != "zk" || c.Devices[0].Poll != 0 {
		t.Errorf("%+v", c)
	}
	c = read(regexp.MustCompile(`#(\S)`).ReplaceAllString(string(data), "$1")) // "#key: value" is an option, "# text" is text
	if len(c.Devices) != 2 || c.Agent.ID != "site-042" || c.Devices[0].SyncClock != 30*time.Second {
		t.Errorf("%+v", c)
	}
}
