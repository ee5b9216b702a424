package gatepost_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// arrows is who must not import what. A directory stands for everything below it.
var arrows = []struct{ dir, forbidden, but, why string }{
	{"drivers", "gatepost/agent", "", "a driver knows a protocol; policy is the agent's"},
	{"drivers", "gatepost/buffer", "", "a driver stores through Emit only"},
	{"drivers", "gatepost/uplink", "", "a driver knows nothing of far systems"},
	{"drivers", "gatepost/cmd", "", "main imports packages, never the other way round"},
	{"uplink", "gatepost/agent", "", "an uplink carries; the agent decides"},
	{"uplink", "gatepost/buffer", "", "the agent reads the buffer for an uplink"},
	{"uplink", "gatepost/drivers", "", "an uplink knows nothing of terminals"},
	{"buffer", "gatepost/", "", "the buffer keeps records; it knows only the vocabulary"},
	{"agent", "gatepost/drivers", "", "the agent sees drivers through the root package's interfaces"},
	{"agent", "gatepost/uplink", "", "the agent sees uplinks through the root package's interfaces"},
	{"agent", "gatepost/cmd", "", "main imports packages, never the other way round"},
	{"internal", "gatepost/", "gatepost/internal/", "internal holds wire helpers without policy"},
}

// TestImportArrows parses every file's imports; running "go list" instead would let the test cache hide a broken rule.
func TestImportArrows(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		test := strings.HasSuffix(path, "_test.go")
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if !strings.Contains(path, "/") && !test && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
				t.Errorf("%s imports %s: the root package imports only the standard library", path, imp)
			}
			if !strings.Contains(path, "/") && !test && strings.HasPrefix(imp, "gatepost/") {
				t.Errorf("%s imports %s: the root package imports no other", path, imp)
			}
			for _, a := range arrows {
				if strings.HasPrefix(path, a.dir+"/") && strings.HasPrefix(imp, a.forbidden) && (a.but == "" || !strings.HasPrefix(imp, a.but)) && !test {
					t.Errorf("%s imports %s: %s", path, imp, a.why)
				}
			}
			if who, what, ok := siblings(path, imp); ok && !test {
				t.Errorf("%s imports %s: %s and %s are siblings", path, imp, who, what)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Fatalf("saw only %d files", files)
	}
}

// siblings finds a driver that imports another driver, or an uplink another uplink. The list packages drivers and uplink,
// and the suites drivertest and uplinktest, are no siblings; a simulator belongs to its driver.
func siblings(path, imp string) (who, what string, bad bool) {
	for _, family := range []string{"drivers", "uplink"} {
		p := strings.Split(path, "/")
		i := strings.Split(strings.TrimPrefix(imp, "gatepost/"), "/")
		if len(p) < 3 || p[0] != family || len(i) < 2 || i[0] != family || !strings.HasPrefix(imp, "gatepost/") {
			continue
		}
		if p[1] != i[1] && !strings.HasSuffix(i[1], "test") {
			return p[1], i[1], true
		}
	}
	return "", "", false
}
