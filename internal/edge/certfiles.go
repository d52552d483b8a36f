package edge

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// CertFiles is an operator's own certificate, which is read again when its files change. Files that cannot be used any more leave
// the last good certificate in place.
type CertFiles struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	seen    [2]stamp // of current
	bad     [2]stamp // of the last version that could not be used
	looked  time.Time
}

// stamp tells one version of a file from another.
type stamp struct {
	changed time.Time
	size    int64
}

// lookAtFiles is how often the files are looked at, at most.
const lookAtFiles = time.Second

// LoadCertFiles reads a certificate, with its chain, and its key from PEM files.
func LoadCertFiles(cert, key string, log *slog.Logger) (*CertFiles, error) {
	f := &CertFiles{cert: cert, key: key, log: log}
	seen, err := f.stamps()
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s: %w", cert, err)
	}
	f.current, f.seen, f.looked = &pair, seen, time.Now()
	return f, nil
}

func (f *CertFiles) stamps() (out [2]stamp, err error) {
	for i, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name) // through links: that is how certificate managers replace both files at once
		if err != nil {
			return out, fmt.Errorf("look at certificate: %w", err)
		}
		out[i] = stamp{info.ModTime(), info.Size()}
	}
	return out, nil
}

// GetCertificate gives a server the newest certificate.
func (f *CertFiles) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Sub(f.looked) < lookAtFiles {
		return f.current, nil
	}
	f.looked = now
	seen, err := f.stamps()
	if err != nil || seen == f.seen || seen == f.bad {
		return f.current, nil
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		// Often half of a change: the other file follows, and with it another look.
		f.bad = seen
		f.log.Warn("changed certificate not usable", "file", f.cert, "error", err)
		return f.current, nil
	}
	f.current, f.seen = &pair, seen
	return f.current, nil
}
