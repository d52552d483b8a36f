package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/store/s3"
	"github.com/tartarus-sandbox/tartarus/internal/store/s3/s3test"
)

// The audit log goes to a bucket, part by part and byte by byte, and what is there nobody can remove before its time, not even who has the
// bucket's own key. What the machine itself loses is then still known.
func TestAuditArchive(t *testing.T) {
	server := s3test.Start(t)
	bucket := server.LockedBucket("evidence")
	bucket.Prefix = ""
	start := time.Now()
	s := newServer(t, "TARTARUS_S3_ENDPOINT="+bucket.Endpoint, "TARTARUS_S3_BUCKET="+bucket.Bucket, "TARTARUS_S3_ACCESS_KEY="+bucket.AccessKey,
		"TARTARUS_S3_SECRET_KEY="+bucket.SecretKey, "TARTARUS_NODE_NAME=archived", "TARTARUS_AUDIT_ARCHIVE_FOR=48h", "TARTARUS_AUDIT_ARCHIVE_EVERY=1s")
	store, err := s3.New(bucket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	id := s.create().SandboxID

	// archived is what the bucket has of the chain, in order, each part locked until its time; the parts are written into a folder as an auditor's.
	auditor := t.TempDir()
	archived := func() (all []byte, names []string, err error) {
		var checkpoints []byte
		locked, err := server.Locked(bucket.Bucket)
		for _, name := range slices.Sorted(maps.Keys(locked)) {
			if !strings.HasPrefix(name, "audit/archived/") {
				continue
			}
			if until := locked[name]; until.Before(start.Add(48*time.Hour)) || until.After(time.Now().Add(48*time.Hour+time.Minute)) {
				return nil, nil, fmt.Errorf("%s is locked until %s", name, until)
			}
			r, err := store.Get(t.Context(), name)
			if err != nil {
				return nil, nil, err
			}
			body, err := io.ReadAll(r)
			if err = errors.Join(err, r.Close()); err != nil {
				return nil, nil, err
			}
			if strings.HasPrefix(filepath.Base(name), "checkpoints-") {
				checkpoints = append(checkpoints, body...)
				continue
			}
			all, names = append(all, body...), append(names, name)
			err = errors.Join(os.MkdirAll(filepath.Join(auditor, "archived"), 0o700), os.WriteFile(filepath.Join(auditor, "archived", filepath.Base(name)), body, 0o600))
			if err != nil {
				return nil, nil, err
			}
		}
		return all, names, errors.Join(err, os.WriteFile(filepath.Join(auditor, "checkpoints.jsonl"), checkpoints, 0o600))
	}
	var names []string
	eventually(t, time.Minute, func() (err error) {
		var all []byte
		if all, names, err = archived(); err == nil && !bytes.Contains(all, []byte(id)) {
			err = fmt.Errorf("the create of %s is not in %q", id, names)
		}
		return err
	})
	for _, name := range names {
		here, err := os.ReadFile(filepath.Join(s.data, "audit", "archived", filepath.Base(name)))
		if err != nil {
			t.Fatal(err)
		}
		r, err := store.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		there, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(here, there) {
			t.Errorf("%s is not what the machine has: %d and %d bytes, %v", name, len(there), len(here), err)
		}
		_ = r.Close()
		if store.Delete(t.Context(), name) == nil {
			if _, err := store.Get(t.Context(), name); err != nil {
				t.Errorf("%s could be removed", name)
			}
		}
	}
	// A server that starts sends nothing again, and goes on behind what is there.
	s.kill()
	s.start()
	id = s.create().SandboxID
	eventually(t, time.Minute, func() error {
		all, again, err := archived()
		if err == nil && !bytes.Contains(all, []byte(id)) {
			err = fmt.Errorf("the create of %s is not in %q", id, again)
		}
		return err
	})
	if out, code := s.cli("audit", "verify"); code != 0 {
		t.Errorf("verify: %d\n%s", code, out)
	}
	// Whoever has only the bucket verifies what is there, and notices what was changed.
	eventually(t, time.Minute, func() error {
		if _, _, err := archived(); err != nil {
			return err
		}
		if out, code := s.cli("audit", "verify", "--dir", auditor, "--json"); code != 0 || !strings.Contains(out, `"ok": true`) || strings.Contains(out, `"checkpoints": 0`) {
			return fmt.Errorf("verify what is archived: %d\n%s", code, out)
		}
		return nil
	})
	first := filepath.Join(auditor, "archived", filepath.Base(names[0]))
	body, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(first, bytes.Replace(body, []byte(`"allow"`), []byte(`"deny!"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := s.cli("audit", "verify", "--dir", auditor); code == 0 || !strings.Contains(out, "changed") {
		t.Errorf("a changed record in the archive: %d\n%s", code, out)
	}
	if strings.Contains(s.log.String(), bucket.SecretKey) {
		t.Error("credentials are logged")
	}
}
