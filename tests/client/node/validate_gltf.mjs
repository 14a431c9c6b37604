// node validate_gltf.mjs FOLDER FILE: the report of gltf-validator, installed in FOLDER, about FILE, as JSON.
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';

const [folder, file] = process.argv.slice(2);
const validator = createRequire(path.join(path.resolve(folder), 'package.json'))('gltf-validator');
const report = await validator.validateBytes(new Uint8Array(fs.readFileSync(file)));
console.log(JSON.stringify(report));
