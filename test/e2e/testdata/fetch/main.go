// Program fetch is a client in a sandbox: it asks for a URL, trusting what its system trusts, and prints what it got. With -k it trusts everybody
// and prints who signed the server's certificate.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	tr := &http.Transport{TLSClientConfig: &tls.Config{}}
	if args[0] == "-k" {
		args = args[1:]
		tr.TLSClientConfig.InsecureSkipVerify = true
	}
	c := &http.Client{Transport: tr, Timeout: 20 * time.Second}
	res, err := c.Get(args[0])
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if tr.TLSClientConfig.InsecureSkipVerify && res.TLS != nil {
		fmt.Println("signed by", res.TLS.PeerCertificates[0].Issuer.CommonName)
		return nil
	}
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1000))
		return fmt.Errorf("status %d: %s", res.StatusCode, text)
	}
	_, err = io.Copy(os.Stdout, res.Body)
	return err
}
