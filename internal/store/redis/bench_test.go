package redis

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/store/storetest"
)

// BenchmarkCreate has no journal: a node keeps its own, on its own disk.
func BenchmarkCreate(b *testing.B) {
	for _, fsync := range []string{"everysec", "always"} {
		for _, clients := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("%s/%d", fsync, clients), func(b *testing.B) {
				s := startServer(b, "--appendfsync", fsync)
				db := openTest(b, Config{Addrs: []string{s.addr()}})
				before := s.processorTime(b)
				defer func() {
					b.ReportMetric(float64((s.processorTime(b)-before).Microseconds())/float64(b.N), "redis-µs/create")
				}()
				storetest.CreatePath(b, db.Queue(), db.Registry(), nil, clients, 4)
			})
		}
	}
}

func BenchmarkList(b *testing.B) {
	n := 1_000_000
	if testing.Short() {
		n = 100_000
	}
	s := startServer(b, "--appendfsync", "no")
	storetest.ListPages(b, openTest(b, Config{Addrs: []string{s.addr()}}).Registry(), n)
}

func (s *server) processorTime(b *testing.B) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}
