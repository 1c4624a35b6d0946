"use strict";
// Verifies a trace with WebCrypto alone: the same steps, in the same order, as ledger/audit/trace.py.
(async () => {
  const text = new TextEncoder();
  const utf8 = new TextDecoder("utf-8", { fatal: true });
  const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
  const unhex = (s) => {
    if (!/^([0-9a-f]{2})*$/.test(s)) throw new Error("is not hex");
    return Uint8Array.from(s.match(/../g) ?? [], (b) => parseInt(b, 16));
  };
  const unbase64 = (s) => {
    const bytes = Uint8Array.from(atob(s), (c) => c.charCodeAt(0));
    if (btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join("")) !== s) throw new Error("is not canonical base64");
    return bytes;
  };
  const join = (...parts) => {
    const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
    let at = 0;
    for (const p of parts) { out.set(p, at); at += p.length; }
    return out;
  };
  const same = (a, b) => a.length === b.length && a.every((x, i) => x === b[i]);
  const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const leafHash = (bytes) => sha256(join(Uint8Array.of(0), bytes)); // RFC 6962 section 2.1
  const nodeHash = (left, right) => sha256(join(Uint8Array.of(1), left, right));

  // RFC 9162 section 2.1.3.2
  async function rootFrom(leaf, index, size, path) {
    if (!(Number.isSafeInteger(index) && Number.isSafeInteger(size) && index >= 0 && index < size)) {
      throw new Error("the index is outside the tree");
    }
    let fn = BigInt(index), sn = BigInt(size) - 1n, r = leaf;
    for (const each of path) {
      const p = unhex(each);
      if (p.length !== 32) throw new Error("a hash of the path has not 32 bytes");
      if (sn === 0n) throw new Error("the path is too long");
      if ((fn & 1n) === 1n || fn === sn) {
        r = await nodeHash(p, r);
        while ((fn & 1n) === 0n && fn !== 0n) { fn >>= 1n; sn >>= 1n; }
      } else {
        r = await nodeHash(r, p);
      }
      fn >>= 1n; sn >>= 1n;
    }
    if (sn !== 0n) throw new Error("the path is too short");
    return r;
  }

  // As much CBOR (RFC 8949) as statements and keys use: definite lengths, shortest form.
  function cbor(bytes) {
    let at = 0;
    const take = (n) => {
      if (n > bytes.length - at) throw new Error("CBOR ends early");
      at += n;
      return bytes.subarray(at - n, at);
    };
    const read = (depth) => {
      if (depth > 8) throw new Error("CBOR is nested too deeply");
      const first = take(1)[0], major = first >> 5, low = first & 31;
      let n = low;
      if (low >= 24) {
        if (low > 27) throw new Error("CBOR of a form that is not used");
        n = Number(take(1 << (low - 24)).reduce((sum, b) => (sum << 8n) | BigInt(b), 0n));
        if (!Number.isSafeInteger(n)) throw new Error("a CBOR integer is too large");
      }
      if (major === 0) return n;
      if (major === 1) return -1 - n;
      if (major === 2) return take(n);
      if (major === 3) return utf8.decode(take(n));
      if (major === 4) {
        const list = [];
        for (let i = 0; i < n; i++) list.push(read(depth + 1));
        return list;
      }
      if (major === 5) {
        const map = new Map();
        for (let i = 0; i < n; i++) { const key = read(depth + 1); map.set(key, read(depth + 1)); }
        return map;
      }
      if (major === 6) return { tag: n, value: read(depth + 1) };
      throw new Error("CBOR of a kind that is not used");
    };
    const value = read(0);
    if (at !== bytes.length) throw new Error("CBOR has bytes after its end");
    return value;
  }
  const bytesHead = (n) => n < 24 ? [0x40 | n] : n < 256 ? [0x58, n] : [0x59, n >> 8, n & 255];

  // COSE_Sign1 (RFC 9052 section 4.2) with CWT claims in its header (RFC 9597)
  function statement(entry) {
    const whole = cbor(entry);
    if (!whole || whole.tag !== 18 || !Array.isArray(whole.value) || whole.value.length !== 4) throw new Error("is not a COSE_Sign1");
    const [header, unprotected, payload, signature] = whole.value;
    const map = cbor(header);
    if (!(unprotected instanceof Map) || unprotected.size) throw new Error("has an unprotected header");
    const claims = map.get(15);
    return {
      entry, signature, alg: map.get(1), kid: hex(map.get(4)), issuer: claims.get(1), subject: claims.get(2),
      payload: JSON.parse(utf8.decode(payload)),
      signed: join(Uint8Array.of(0x84, 0x6a), text.encode("Signature1"), Uint8Array.from(bytesHead(header.length)), header,
        Uint8Array.of(0x40), Uint8Array.from(bytesHead(payload.length)), payload), // section 4.4
    };
  }
  async function verify(key, message, signature) {
    if (key.type === "ed25519") {
      const made = await crypto.subtle.importKey("raw", key.raw, { name: "Ed25519" }, false, ["verify"]);
      return crypto.subtle.verify({ name: "Ed25519" }, made, signature, message);
    }
    const algorithm = { name: "ECDSA", namedCurve: "P-256" };
    const made = await crypto.subtle.importKey("raw", key.raw, algorithm, false, ["verify"]);
    return crypto.subtle.verify({ name: "ECDSA", hash: "SHA-256" }, made, signature, message);
  }
  function coseKey(bytes) { // RFC 9053 section 7
    const map = cbor(bytes);
    if (map.get(1) === 1 && map.get(-1) === 6) return { type: "ed25519", raw: map.get(-2) };
    if (map.get(1) === 2 && map.get(-1) === 1) return { type: "es256", raw: join(Uint8Array.of(4), map.get(-2), map.get(-3)) };
    return { type: "other" };
  }

  const checks = document.getElementById("checks");
  const unknown = [];
  let step = "";
  const begin = (name) => { step = name; };
  const add = (name, cls) => {
    const item = document.createElement("li");
    item.textContent = name;
    item.className = cls;
    checks.append(item);
  };
  const done = () => add(step, "verified");
  const must = (holds, why) => { if (!holds) throw new Error(why); };

  function table(id, rows) {
    const body = document.getElementById(id);
    for (const [name, value] of rows) {
      if (value === undefined || value === null || value === "") continue;
      const row = body.insertRow();
      const head = document.createElement("th");
      head.textContent = name;
      row.append(head);
      row.insertCell().textContent = String(value);
    }
    if (!body.rows.length) { body.hidden = true; const title = document.getElementById(id + "-title"); if (title) title.hidden = true; }
  }
  function flat(value, prefix = "") {
    const rows = [];
    for (const [name, each] of Object.entries(value)) {
      const label = (prefix + name).replaceAll("_", " ");
      if (each !== null && typeof each === "object" && !Array.isArray(each)) rows.push(...flat(each, prefix + name + " "));
      else if (Array.isArray(each)) each.forEach((one, i) => typeof one === "object" ? rows.push(...flat(one, `${prefix}${name} ${i + 1} `)) : rows.push([label, one]));
      else if (name.endsWith("_us") && each > 1e15) rows.push([label, `${each} (${new Date(each / 1000).toISOString()})`]);
      else rows.push([label.replace(/^energy energy /, "energy "), typeof each === "number" ? amount(name, each) : each]);
    }
    return rows;
  }
  // Whole numbers as they are signed, with thousands apart; and the same in a unit that people use.
  const units = { uj: [1e6, "J"], ng: [1e6, "mg CO2e"], nl: [1e6, "ml"], nano: [1e9, ""], ug_per_kwh: [1e6, "g CO2e/kWh"], milli: [1000, ""], mw: [1000, "W"], ul_per_kwh: [1e6, "l/kWh"] };
  const rounded = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 12 });
  function amount(name, value) {
    const plain = value.toLocaleString("en");
    const unit = Object.keys(units).sort((a, b) => b.length - a.length).find((each) => name.endsWith("_" + each));
    if (!unit) return plain;
    const [divisor, word] = units[unit];
    return `${plain} (${rounded(value / divisor)}${word && " " + word})`;
  }
  function short(record, deployment, later) {
    const spent = record.energy, counted = record.usage;
    return [
      ["when", new Date(record.started_us / 1000).toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC")],
      ["model", [deployment.model, deployment.version, deployment.quantization].filter(Boolean).join(" ")],
      ["served by", [deployment.engine, deployment.provider, deployment.site, deployment.accelerator].filter(Boolean).join(", ")],
      ["tokens", `${counted.input_tokens.toLocaleString("en")} in, ${counted.output_tokens.toLocaleString("en")} out`],
      ["energy", spent && `${rounded(spent.energy_uj / 1e6)} J (${rounded(spent.energy_uj / 3.6e6)} mWh), ${spent.method}`],
      ["carbon", record.carbon_ng !== undefined && `${rounded(record.carbon_ng / 1e6)} mg CO2e, location-based`],
      ["weights", deployment.weights && `${deployment.weights.digest} (${deployment.weights.method})`],
      ["but", later.some(([what]) => what.startsWith("correction")) && "a correction restates it: see the later statements below"],
    ].map(([name, value]) => [name, value || undefined]);
  }
  // RFC 8785 for what documents hold: sorted keys, no floats.
  const canonical = (v) => Array.isArray(v) ? `[${v.map(canonical).join(",")}]`
    : v !== null && typeof v === "object" ? `{${Object.keys(v).sort().map((k) => JSON.stringify(k) + ":" + canonical(v[k])).join(",")}}`
    : JSON.stringify(v);

  const verdict = document.getElementById("verdict");
  const say = (cls, words) => { verdict.className = cls; verdict.textContent = words; };
  try {
    begin("The trace can be read");
    const { trace, log_key } = JSON.parse(document.getElementById("data").textContent);
    document.getElementById("key").textContent = log_key;
    must(trace.format === "tallystick-trace" && trace.version === 1, "is not a trace of version 1");
    done();

    begin("The log's key signed the checkpoint");
    const [origin, keyId, material] = [/^(.+)\+([0-9a-f]{8})\+(.+)$/.exec(log_key)].flatMap((m) => m ? m.slice(1) : []);
    must(origin, "the key is not a verifier key");
    const raw = unbase64(material);
    must(raw[0] === 1 && raw.length === 33, "the key is not Ed25519");
    must(hex((await sha256(join(text.encode(origin + "\n"), raw))).subarray(0, 4)) === keyId, "the key's id does not belong to it");
    const logKey = { type: "ed25519", raw: raw.subarray(1) };
    const split = trace.checkpoint.indexOf("\n\n");
    must(split > 0, "the checkpoint has no signature");
    const body = trace.checkpoint.slice(0, split + 1);
    const [name, sizeText, rootText] = body.split("\n");
    must(name === origin, "the checkpoint is of another log");
    must(/^(0|[1-9][0-9]*)$/.test(sizeText), "the checkpoint's size is no number");
    let signedBy = false;
    for (const line of trace.checkpoint.slice(split + 2).split("\n")) {
      if (!line) continue;
      const found = /^\u2014 (\S+) (\S+)$/.exec(line);
      must(found, "a line of signatures is malformed");
      const signature = unbase64(found[2]);
      if (found[1] === origin && hex(signature.subarray(0, 4)) === keyId) {
        must(await verify(logKey, text.encode(body), signature.subarray(4)), "the signature does not verify");
        signedBy = true;
      }
    }
    must(signedBy, "no signature is by this key");
    const size = Number(sizeText), root = unbase64(rootText);
    done();

    const inLog = async (leaf, what) => {
      begin(`${what} is in the log`);
      const made = statement(unbase64(leaf.entry));
      must(same(await rootFrom(await leafHash(made.entry), leaf.leaf_index, size, leaf.path), root), "its path does not lead to the checkpoint's root");
      done();
      return made;
    };
    const batch = await inLog(trace.statement, "The issuer's statement about the batch");
    must(batch.payload.kind === "batch", "the statement is not about a batch");
    const registered = await inLog(trace.issuer_key, "The registration of the issuer's key");
    begin("The log signed that registration");
    must(await verify(logKey, registered.signed, registered.signature), "the signature does not verify");
    const of = registered.payload;
    must(of.kind === "key" && of.action !== "revoke" && of.issuer === batch.issuer && of.kid === batch.kid, "it registers another key");
    done();

    begin("The issuer signed the statement");
    const key = coseKey(unhex(of.key));
    if (key.type === "other") {
      unknown.push("the issuer's signature: this browser has no such algorithm (use `tallystick verify`)");
      add(step + ": cannot be told in a browser", "unknown");
    } else {
      must(await verify(key, batch.signed, batch.signature), "the signature does not verify");
      done();
    }

    begin("The record is in that batch");
    const recordBytes = unbase64(trace.record);
    const recordHash = await leafHash(recordBytes);
    must(hex(await rootFrom(recordHash, trace.position, batch.payload.count, trace.path)) === batch.payload.root, "record, position and path do not lead to the root that the issuer signed");
    const record = JSON.parse(utf8.decode(recordBytes));
    done();

    const document_ = async (leaf, kind, digest, what) => {
      const made = await inLog(leaf, `The statement that publishes the ${what}`);
      begin(`It is the ${what} that the record refers to`);
      must(made.payload.kind === kind && hex(await sha256(text.encode(canonical(made.payload[kind])))) === digest, "it is another one");
      done();
      return made.payload[kind];
    };
    const deployment = await document_(trace.deployment, "deployment", record.deployment, "deployment");
    must((trace.factors === undefined) === (record.factors === undefined), "the factor set is missing");
    const factors = trace.factors === undefined ? {} : await document_(trace.factors, "factors", record.factors, "factor set");
    const later = [];
    for (const leaf of trace.later ?? []) {
      const made = await inLog(leaf, "A later statement about the record");
      begin("It is about this record");
      const about = made.payload;
      if (about.kind === "correction") {
        must(made.issuer === batch.issuer && about.record === record.id && about.record_hash === hex(recordHash), "it is about another record");
      } else {
        must(about.kind === "evaluation" && (about.record === record.id || about.deployment === record.deployment || about.statement === hex(await leafHash(batch.entry))), "it is about something else");
      }
      done();
      later.push([`${about.kind} by ${made.issuer}`, JSON.stringify(about)]);
    }

    document.getElementById("shown").hidden = false;
    table("short", short(record, deployment, later));
    table("record", flat(record));
    table("deployment", flat(deployment));
    table("factors", flat(factors));
    table("later", later);
    table("place", [
      ["log", origin], ["checkpoint", `size ${size}, root ${rootText}`], ["issuer", batch.issuer],
      ["statement", `number ${batch.payload.seq} of the issuer's chain, leaf ${trace.statement.leaf_index}`],
      ["leaf hash", hex(await leafHash(batch.entry))], ["position in the batch", `${trace.position + 1} of ${batch.payload.count}`],
      ["record hash", hex(recordHash)], ["signatures on the checkpoint", trace.checkpoint.slice(split + 2).split("\n").filter(Boolean).map((l) => l.split(" ")[1]).join(", ")],
    ]);
    if (unknown.length) say("unknown", `not wholly checked: ${unknown.join("; ")}`);
    else say("verified", "verified: the log whose key is below vouches for every byte shown here");
  } catch (error) {
    const unsupported = error.name === "NotSupportedError" || !globalThis.crypto?.subtle;
    add(`${step}: ${unsupported ? "this browser cannot check it" : error.message}`, unsupported ? "unknown" : "failed");
    if (unsupported) say("unknown", "not checked: this browser lacks what is needed (use a current one, or `tallystick verify`)");
    else say("failed", `FAILED: ${step}: ${error.message}`);
    document.getElementById("withheld").hidden = false;
    document.getElementById("shown").hidden = true;
  }
})();
