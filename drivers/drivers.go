// Package drivers is the list of terminal families.
package drivers

import (
	"gatepost"
	"gatepost/drivers/zk"
)

// All is the whole list. To add a driver, add a line.
func All() []gatepost.Driver {
	return []gatepost.Driver{
		zk.Driver(),
	}
}
