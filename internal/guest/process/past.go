package process

import "time"

// Ended processes stay known for a while, so that a client whose connection broke learns how its command ended.
const (
	memory  = 30 * time.Second
	maxPast = 1024 // of about 1 KiB each: with more than 34 ends a second the memory gets shorter
)

// remember moves p from the living to the past. The conclusion of p calls it.
func (m *Manager) remember(p *Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.live, p)
	p.endedAt = time.Now()
	m.past = append(m.past, p)
	if len(m.past) > maxPast {
		m.past[0] = nil
		m.past = m.past[1:]
	}
	if m.sweep == nil && !m.closed {
		m.sweep = time.AfterFunc(memory, m.forget)
	}
}

// forget drops what is too old and comes back for the next one. It does not run while nothing is remembered.
func (m *Manager) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweep = nil
	for len(m.past) > 0 {
		left := memory - time.Since(m.past[0].endedAt)
		if left > 0 {
			if !m.closed {
				m.sweep = time.AfterFunc(left, m.forget)
			}
			return
		}
		m.past[0] = nil
		m.past = m.past[1:]
	}
	m.past = nil
}

// newest finds the process started last of those that match, the living before the past. The caller holds mu.
func (m *Manager) newest(match func(*Process) bool) *Process {
	var found *Process
	for p := range m.live {
		if match(p) && (found == nil || p.seq > found.seq) {
			found = p
		}
	}
	if found != nil {
		return found
	}
	for _, p := range m.past {
		if match(p) && (found == nil || p.seq > found.seq) {
			found = p
		}
	}
	return found
}
