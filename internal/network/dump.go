package network

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// dumps is how often a listing is tried. One takes about 0.2 ms, and starts of other sandboxes change devices every few
// milliseconds: twenty in a row that all coincide with a change do not happen.
const dumps = 20

// whole repeats a listing of the kernel's that was changed while it was read: such a one may lack entries, or hold one twice.
func whole[T any](list func() ([]T, error)) (out []T, err error) {
	for range dumps {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, err
}
