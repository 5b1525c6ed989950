// The version of one installed package.
import { readFileSync } from "node:fs";

const manifest = new URL(`node_modules/${process.argv[2]}/package.json`, import.meta.url);
console.log(JSON.parse(readFileSync(manifest)).version);
