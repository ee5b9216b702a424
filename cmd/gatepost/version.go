package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "dev"

func showVersion(_ context.Context, f *flags) error {
	asJSON := f.jsonFlag()
	if _, err := f.take(); err != nil {
		return err
	}
	if !*asJSON {
		fmt.Printf("gatepost %s (%s/%s, %s)\n", version, runtime.GOOS, runtime.GOARCH, runtime.Version())
		return nil
	}
	raw, err := json.Marshal(map[string]string{"version": version, "os": runtime.GOOS, "arch": runtime.GOARCH, "go": runtime.Version()})
	if err != nil {
		return err
	}
	return printJSON(raw)
}
