package sqlite

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/tartarus-sandbox/tartarus/internal/store/storetest"
)

func BenchmarkCreate(b *testing.B) {
	for _, clients := range []int{1, 64, 256} {
		b.Run(fmt.Sprint(clients), func(b *testing.B) {
			db := openTest(b, filepath.Join(b.TempDir(), "store.db"))
			storetest.CreatePath(b, db.Queue(), db.Registry(), db.Journal(), clients, 4)
		})
	}
}

func BenchmarkList(b *testing.B) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	db := openTest(b, filepath.Join(b.TempDir(), "store.db"))
	storetest.ListPages(b, db.Registry(), n)
}
