package config

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"gatepost"
	"gatepost/drivers"
	"gatepost/uplink"
)

// TestDocs wants each option in docs/config.md, under its own heading.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	check := func(heading string, options reflect.Type) {
		t.Helper()
		_, part, found := strings.Cut(string(page), "\n"+heading+"\n")
		part, _, _ = strings.Cut(part, "\n#")
		if !found {
			t.Errorf("no heading %q", heading)
		}
		for name := range optionsOf(options) {
			if !strings.Contains(part, "\n| `"+name+"` |") {
				t.Errorf("%s: no row for %s", heading, name)
			}
		}
	}
	check("## agent", reflect.TypeFor[agentKeys]())
	check("## buffer", reflect.TypeFor[bufferKeys]())
	check("## devices", reflect.TypeFor[deviceKeys]())
	check("## uplinks", reflect.TypeFor[uplinkKeys]())

	var options reflect.Type
	peek := func(into any) error { options = reflect.TypeOf(into).Elem(); return errors.New("only looking") }
	for _, d := range drivers.All() {
		_, _ = d.New(peek, gatepost.Env{ID: "x", Log: quiet})
		check("### driver: "+d.Name, options)
	}
	for _, u := range uplink.All() {
		_, _ = u.New(peek, gatepost.UplinkEnv{ID: "x", Agent: "x", Log: quiet})
		check("### driver: "+u.Name, options)
	}
}
