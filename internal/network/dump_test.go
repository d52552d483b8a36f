package network

import (
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestWholeListings(t *testing.T) {
	interrupted := fmt.Errorf("list: %w", netlink.ErrDumpInterrupted)
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		answers []error // in order; the last one goes on
		calls   int
		err     error
	}{
		"at once":            {[]error{nil}, 1, nil},
		"third time":         {[]error{interrupted, interrupted, nil}, 3, nil},
		"another error":      {[]error{interrupted, broken}, 2, broken},
		"always interrupted": {[]error{interrupted}, dumps, interrupted},
	} {
		calls := 0
		out, err := whole(func() ([]int, error) {
			e := tc.answers[min(calls, len(tc.answers)-1)]
			calls++
			return []int{calls}, e
		})
		if calls != tc.calls || !errors.Is(err, tc.err) || (err == nil && out[0] != tc.calls) {
			t.Errorf("%s: %d calls, %v, %v", name, calls, out, err)
		}
	}
}
