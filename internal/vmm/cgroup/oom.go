package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Alarm tells when the kernel kills in a v1 group for want of memory. (In v2 it kills the whole group by itself.)
type Alarm struct {
	group *Group
	event *os.File
}

// WatchOOM sets an alarm on the group. It is nil where none is needed.
func (g *Group) WatchOOM() (*Alarm, error) {
	path := g.file("memory", "memory.oom_control")
	if g.host.unified != "" || path == "" {
		return nil, nil
	}
	control, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("watch control group %s: %w", g.name, err)
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch control group %s: %w", g.name, err)
	}
	event := os.NewFile(uintptr(fd), "oom")
	line := fmt.Sprintf("%d %d", fd, control.Fd())
	if err := write(filepath.Join(filepath.Dir(path), "cgroup.event_control"), line); err != nil {
		event.Close()
		return nil, fmt.Errorf("watch control group %s: %w", g.name, err)
	}
	return &Alarm{group: g, event: event}, nil
}

// Wait blocks until the kernel has killed a process of the group, and reports false when the alarm was closed or
// the group removed before.
func (a *Alarm) Wait() bool {
	// The event comes when memory runs out, shortly before the kernel kills, and once more when the group goes.
	const settle, tries = 5 * time.Millisecond, 100
	for {
		if _, err := a.event.Read(make([]byte, 8)); err != nil {
			return false
		}
		for range tries {
			if a.group.OOMKills() > 0 {
				return true
			}
			if !a.group.Exists() {
				return false
			}
			time.Sleep(settle)
		}
	}
}

// Close ends Wait.
func (a *Alarm) Close() { _ = a.event.Close() }
